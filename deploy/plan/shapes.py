"""Sizes of one microbatch that memory and time are computed from. No torch."""

from dataclasses import dataclass

from model.accounting import tokens_of
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid
from pretrain.work import typical_work

ELEMENT_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Microbatch:
    """One forward pass of one rank."""

    modality: str
    samples: float
    """B; audio's batches are planned by seconds, so it need not be whole."""
    rows: float
    """N = B * M."""
    tokens: int
    """T."""
    kept: int
    """V."""
    extra: int
    """Tokens before the others."""
    length: int
    """Of the raw input, as in ``model.accounting.tokens_of``."""
    number: int
    """Of such microbatches in a step of one rank."""

    @property
    def removed(self) -> int:
        """R."""
        return self.tokens - self.kept


def microbatches(config: RunConfig, grid: Grid) -> list[Microbatch]:
    """One per modality.

    Raises:
        RunError: if the batch does not divide.
    """
    made = []
    for modality, work in typical_work(config).items():
        side = config.model.modalities[modality]
        size, number = config.microbatches(modality, grid.dp_size)
        samples = size * work.num_samples / config.units_per_step(modality)
        tokens = tokens_of(side, work.length)
        kept = tokens - side.mask.num_removed(tokens)
        rows = samples * side.num_views
        made.append(Microbatch(modality, samples, rows, tokens, kept, side.num_extra_tokens, work.length, number))
    return made
