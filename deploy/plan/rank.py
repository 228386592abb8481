"""One rank of a run: which parameters it has, how the optimizer cuts them, what its microbatches are. No torch."""

from dataclasses import dataclass
from functools import cache, cached_property

from deploy.plan.engine import Dtype, weight_dtype
from deploy.plan.shapes import Microbatch, microbatches
from model.config import ModelConfig
from model.inventory import Parameter, student_parameters, teacher_parameters
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid
from pretrain.sections import ParallelSection, PrecisionSection
from pretrain.work import stages_of_run

FILLER = Parameter("filler", (1,), False)
"""Of a stage that has nothing but what the teacher has too, see ``pretrain.optim``; it never gets a gradient."""


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
        """Elements of all its parameters that get gradients."""
        return sum(group.numel for group in self.groups if FILLER not in group)

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
    def microbatches(self) -> list[Microbatch]:
        """Of a step of this rank, by modality."""
        return microbatches(self.config, self.grid)

    def used(self, modality: str) -> Group:
        """Parameters that a microbatch of one modality has gradients of."""
        return used_by(self.config.model, self.numbers, self.grid.tp_size, modality)


@cache
def _groups(model: ModelConfig, numbers: range, tp_size: int) -> list[Group]:
    """The optimizer's groups; a search asks for the same ones again and again."""
    teachers = teacher_parameters(model, numbers, tp_size)
    names = {one.name for one in teachers}
    own = [one for one in student_parameters(model, numbers, tp_size) if one.name not in names]
    return [Group(teachers), Group(own or [FILLER])]


@cache
def used_by(model: ModelConfig, numbers: range, tp_size: int, modality: str) -> Group:
    """Parameters of a stage that a microbatch of one modality has gradients of."""
    others = set(model.modalities) - {modality}
    everything = (one for group in _groups(model, numbers, tp_size) for one in group if one != FILLER)
    return Group(one for one in everything if not _is_of(one.name, others))


def _is_of(name: str, modalities: set[str]) -> bool:
    part, _, rest = name.partition(".")
    if part == "reconstruction":
        return "image" in modalities
    return part in ("frontends", "decoders") and rest.partition(".")[0] in modalities
