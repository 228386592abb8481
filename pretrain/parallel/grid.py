"""Degrees of parallelism -> the grid of ranks, and which combinations are legal. No torch."""

from dataclasses import dataclass

from model.config import ModelConfig
from pretrain.errors import RunError
from pretrain.sections import ParallelSection


@dataclass(frozen=True)
class Grid:
    """How ``world_size`` ranks are laid out: tensor-parallel ranks are neighbours, then data-parallel ones.

    The order is megatron-core's ("tp-cp-ep-dp-pp").
    """

    world_size: int
    tp_size: int

    @property
    def dp_size(self) -> int:
        """Ranks that hold the same part of the model and see different samples."""
        return self.world_size // self.tp_size

    def tp_rank(self, rank: int) -> int:
        """Which part of the model a rank holds."""
        return rank % self.tp_size

    def dp_rank(self, rank: int) -> int:
        """Which share of a global batch a rank sees."""
        return rank // self.tp_size


def make_grid(section: ParallelSection, model: ModelConfig, world_size: int) -> Grid:
    """The grid of a run.

    Raises:
        RunError: if the degrees do not fit the ranks or the model; names the field and what would fit.
    """
    tp_size = section.tp_size
    _require(
        world_size % tp_size == 0,
        "tp_size",
        f"{tp_size} does not divide the {world_size} processes",
        world_size,
        tp_size,
    )
    heads = model.encoder.num_heads
    _require(heads % tp_size == 0, "tp_size", f"{tp_size} does not divide the {heads} attention heads", heads, tp_size)
    hidden = int(model.encoder.dim * model.encoder.mlp_ratio)
    _require(hidden % tp_size == 0, "tp_size", f"{tp_size} does not divide the MLP's width {hidden}", hidden, tp_size)
    return Grid(world_size, tp_size)


def _require(condition: bool, field: str, problem: str, whole: int, wanted: int) -> None:
    if not condition:
        nearest = max(size for size in range(1, wanted + 1) if whole % size == 0)
        raise RunError(f"parallel.{field}: {problem}; the nearest size that does is {nearest}")
