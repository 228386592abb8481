"""One rank of a run: which parameters it has, how the optimizer cuts them, what its microbatches are. No torch."""

from dataclasses import dataclass
from functools import cache, cached_property

from deploy.plan.engine import Dtype, weight_dtype
from model.accounting import tokens_of
from model.config import ModelConfig
from model.inventory import Parameter, student_parameters, teacher_parameters
from model.sections import ModalityConfig
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid
from pretrain.sections import ParallelSection, PrecisionSection
from pretrain.work import stages_of_run, typical_work


@dataclass(frozen=True)
class Microbatches:
    """What a rank's step has of one modality."""

    side: ModalityConfig
    number: int
    """Microbatches per step."""
    num_samples: float
    """B of one microbatch; of audio typical."""
    num_tokens: int
    """T."""

    @property
    def student_tokens(self) -> int:
        """Rows of the student's hidden states in one microbatch: B * M * (extra + V)."""
        side = self.side
        num_kept = self.num_tokens - side.mask.num_removed(self.num_tokens)
        return round(self.num_samples * side.num_views) * (side.num_extra_tokens + num_kept)

    @property
    def teacher_tokens(self) -> int:
        """Rows of the teacher's: B * (extra + T)."""
        return round(self.num_samples) * (self.side.num_extra_tokens + self.num_tokens)

    @property
    def target_tokens(self) -> int:
        """Rows of the targets: B * T."""
        return round(self.num_samples) * self.num_tokens


class Group(list[Parameter]):
    """Parameters of an optimizer group."""

    @cached_property
    def numel(self) -> int:
        """Elements of all of them."""
        return sum(one.numel for one in self)


@dataclass(frozen=True)
class Rank:
    """Any rank of a stage: data-parallel and tensor-parallel ranks have equal amounts of everything."""

    config: RunConfig
    grid: Grid
    pp_rank: int

    @property
    def parallel(self) -> ParallelSection:
        """The layout."""
        return self.config.parallel

    @property
    def precision(self) -> PrecisionSection:
        """What is computed in."""
        return self.config.precision

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's."""
        return self.config.parallel.zero_stage

    @property
    def dtype(self) -> Dtype:
        """Of activations and of the teacher's weights."""
        return self.config.precision.dtype

    @property
    def weight_dtype(self) -> Dtype:
        """Of the student's weights."""
        return weight_dtype(self.parallel, self.precision)

    @property
    def dim(self) -> int:
        """D."""
        return self.config.model.encoder.dim

    @property
    def depth(self) -> int:
        """Shared blocks of all stages."""
        return self.config.model.encoder.depth

    @cached_property
    def numbers(self) -> range:
        """Shared blocks of this stage."""
        return stages_of_run(self.config, pp_size=self.grid.pp_size)[self.pp_rank]

    @property
    def is_first(self) -> bool:
        """Whether the frontends are here."""
        return self.numbers.start == 0

    @property
    def is_last(self) -> bool:
        """Whether the decoders are here."""
        return self.numbers.stop == self.depth

    @cached_property
    def teachers(self) -> Group:
        """Parameters that the teacher has too: the optimizer's first group."""
        return _groups(self.config.model, self.numbers, self.grid.tp_size)[0]

    @cached_property
    def groups(self) -> list[Group]:
        """The optimizer's groups; a stage without parameters of the student's own has a filler, see ``optim``."""
        return _groups(self.config.model, self.numbers, self.grid.tp_size)

    @property
    def numel(self) -> int:
        """Elements of all its parameters."""
        return sum(group.numel for group in self.groups)

    def shard_numel(self, group: Group) -> int:
        """Elements of a group that the optimizer of each data-parallel rank owns, padding included; at stage 0 those
        of the teacher's shard (``fragments.pack`` and ``split``).
        """
        dp_size, total = self.grid.dp_size, group.numel
        if self.zero_stage == 3:
            return sum(-(-one.numel // dp_size) for one in group)
        if self.zero_stage == 0:
            return -(-total // dp_size)
        return -(-total // (2 * dp_size)) * 2  # DeepSpeed aligns shards to 4 bytes of bf16

    def whole_numel(self, group: Group) -> int:
        """Elements of a group that is brought together: of stages 1 and 2 with padding."""
        if self.zero_stage in (1, 2):
            return self.grid.dp_size * self.shard_numel(group)
        return group.numel

    @cached_property
    def microbatches(self) -> list[Microbatches]:
        """Of a step of this rank, by modality."""
        found = []
        for name, work in typical_work(self.config).items():
            side = self.config.model.modalities[name]
            _, number = self.config.microbatches(name, self.grid.dp_size)
            num_samples = work.num_samples / (self.grid.dp_size * number)
            found.append(Microbatches(side, number, num_samples, tokens_of(side, work.length)))
        return found

    @property
    def num_microbatches(self) -> int:
        """Of a step of this rank."""
        return sum(one.number for one in self.microbatches)


@cache
def _groups(model: ModelConfig, numbers: range, tp_size: int) -> list[Group]:
    """The optimizer's groups; a search asks for the same ones again and again."""
    teachers = teacher_parameters(model, numbers, tp_size)
    names = {one.name for one in teachers}
    own = [one for one in student_parameters(model, numbers, tp_size) if one.name not in names]
    return [Group(teachers), Group(own or [Parameter("filler", (1,), False)])]
