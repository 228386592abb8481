"""Degrees of parallelism -> the grid of ranks, and which combinations are legal. No torch."""

from dataclasses import dataclass

from model.config import ModelConfig
from pretrain.errors import RunError
from pretrain.sections import ParallelSection


@dataclass(frozen=True)
class Grid:
    """How ``world_size`` ranks are laid out: neighbours are tensor parallel, then come data-parallel ones, then stages.

    The order is megatron-core's ("tp-cp-ep-dp-pp").
    """

    world_size: int
    tp_size: int
    pp_size: int = 1

    @property
    def dp_size(self) -> int:
        """Ranks that hold the same part of the model and see different samples."""
        return self.world_size // (self.tp_size * self.pp_size)

    def tp_rank(self, rank: int) -> int:
        """Which part of the linears a rank holds."""
        return rank % self.tp_size

    def dp_rank(self, rank: int) -> int:
        """Which share of a global batch a rank sees."""
        return rank // self.tp_size % self.dp_size

    def pp_rank(self, rank: int) -> int:
        """Which stage of the pipeline a rank holds."""
        return rank // (self.tp_size * self.dp_size)

    def rank(self, tp_rank: int, dp_rank: int, pp_rank: int) -> int:
        """The rank at a place of the grid."""
        return tp_rank + self.tp_size * (dp_rank + self.dp_size * pp_rank)


def make_grid(section: ParallelSection, model: ModelConfig, world_size: int) -> Grid:
    """The grid of a run.

    Raises:
        RunError: if the degrees do not fit the ranks or the model, or exclude each other; names the field and what
            would fit.
    """
    tp_size, pp_size = section.tp_size, section.pp_size
    heads, hidden = model.encoder.num_heads, int(model.encoder.dim * model.encoder.mlp_ratio)
    wholes = {f"the {world_size} processes": world_size, f"the {heads} attention heads": heads}
    _require_divisor("tp_size", tp_size, wholes | {f"the MLP's width {hidden}": hidden})
    if section.sequence_parallel and tp_size == 1:
        raise RunError(
            "parallel.sequence_parallel: splits rows over the processes that tp_size says, but that is 1; "
            "set it to false, or parallel.tp_size to 2 or more"
        )
    depth, each = model.encoder.depth, world_size // tp_size
    what = f"the {world_size} processes" if tp_size == 1 else f"the {each} groups of {tp_size} processes"
    _require_divisor("pp_size", pp_size, {what: each}, at_most=depth, why="stages need a block each, but there are")
    if pp_size > 1 and section.zero_stage != 1:
        reason = {
            0: "stages run their backward passes themselves, which DeepSpeed hooks into from stage 1 on only",
            2: "it reduces gradients in every microbatch's backward pass, which a pipeline spreads over the whole step",
            3: "its collectives over all processes would wait for stages that are somewhere else in the schedule",
        }[section.zero_stage]
        raise RunError(
            f"parallel.zero_stage: {section.zero_stage} does not go with pp_size {pp_size}: {reason}; "
            "the nearest stage that does is 1"
        )
    return Grid(world_size, tp_size, pp_size)


def _require_divisor(
    field: str, wanted: int, wholes: dict[str, int], at_most: int | None = None, why: str = ""
) -> None:
    """Raise unless ``wanted`` divides all ``wholes`` (by what they are called) and is not too large."""
    problems = [f"{wanted} does not divide {what}" for what, whole in wholes.items() if whole % wanted]
    if at_most is not None and wanted > at_most:
        problems.insert(0, f"{wanted} {why} {at_most}")
    if problems:
        sizes = range(1, min(wanted, at_most or wanted) + 1)
        nearest = max(size for size in sizes if not any(whole % size for whole in wholes.values()))
        raise RunError(f"parallel.{field}: {problems[0]}; the nearest size that is possible is {nearest}")
