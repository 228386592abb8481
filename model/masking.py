"""Masks of views and the indices that follow from them; pure functions of explicit generators."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from model.sections import MaskConfig


class Views(NamedTuple):
    """Which tokens the N = B * M views keep; rows 0..M-1 belong to sample 0. All rows keep equally many.

    Or some of a batch's rows: then N is their number.
    """

    mask: Tensor
    """(N, T) bool, True = removed."""
    kept: Tensor
    """(N, V) long, ascending token numbers."""
    removed: Tensor
    """(N, R) long, ascending token numbers."""
    restore: Tensor
    """(N, T) long: where each token stands in ``cat([kept, removed])``."""
    num_views: int
    """M."""
    first: int = 0
    """Number of the first row in the batch, if these are not all of its rows."""

    @property
    def samples(self) -> range:
        """Numbers of the samples in the batch that these rows are views of."""
        return range(self.first // self.num_views, -(-(self.first + len(self.mask)) // self.num_views))

    def of(self, rows: range) -> "Views":
        """A run of these rows."""
        cut = slice(rows.start, rows.stop)
        parts = self.mask[cut], self.kept[cut], self.removed[cut], self.restore[cut]
        return Views(*parts, self.num_views, self.first + rows.start)

    def spread(self, x: Tensor) -> Tensor:
        """What belongs to the samples, for every row: x of the whole batch (B, ...) -> (N, ...)."""
        samples = self.samples
        each = x[samples.start : samples.stop].repeat_interleave(self.num_views, dim=0)
        return self.trimmed(each)

    def trimmed(self, x: Tensor) -> Tensor:
        """These rows of all views of ``samples`` (len(samples) * M, ...)."""
        start = self.first - self.samples.start * self.num_views
        return x[start : start + len(self.mask)]


def split_views(mask: Tensor, num_kept: int) -> Views:
    """Indices of kept and removed tokens.

    Args:
        mask: (B, M, T) bool with ``num_kept`` False in every row.
        num_kept: V, known to the host so that the device need not be asked.
    """
    flat = mask.flatten(0, 1)
    shuffled = flat.to(torch.uint8).argsort(dim=1, stable=True)
    kept, removed = shuffled[:, :num_kept], shuffled[:, num_kept:]
    return Views(flat, kept, removed, shuffled.argsort(dim=1), mask.shape[1])


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of x (N, T, D) by number: index (N, V) -> (N, V, D)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def block_masks_2d(num_masks: int, grid_size: int, config: MaskConfig, generator: torch.Generator) -> Tensor:
    """Square blocks over a square grid, each mask with exactly the same number of removed tokens.

    Blocks of ``config.length`` cells a side are marked around centres drawn with replacement; cells outside the
    grid are clamped to its border. Then random cells are marked or unmarked until the count is exact. With
    ``config.inverse`` the marked cells are those that stay. Draws the same numbers in the same order as
    fairseq ``compute_block_mask_2d`` (examples/data2vec/data/modality.py).

    Args:
        num_masks: rows.
        grid_size: cells along one side.
        config: share, adjustment, block length, inversion.
        generator: source of all randomness, on the CPU.
    Returns:
        (num_masks, grid_size^2) bool, True = removed.
    """
    centres = _centres(num_masks, grid_size**2, config.length**2, config, generator)
    offsets = torch.arange(config.length) - config.length // 2
    rows = (centres // grid_size)[:, :, None, None] + offsets[:, None]
    columns = (centres % grid_size)[:, :, None, None] + offsets
    cells = rows.clamp(0, grid_size - 1) * grid_size + columns.clamp(0, grid_size - 1)
    return _exact(cells.flatten(1), grid_size**2, config, generator)


def block_masks_1d(num_masks: int, num_tokens: int, config: MaskConfig, generator: torch.Generator) -> Tensor:
    """Blocks over a sequence (fairseq ``compute_block_mask_1d``); arguments and result as of ``block_masks_2d``."""
    centres = _centres(num_masks, num_tokens, config.length, config, generator)
    offsets = torch.arange(config.length) - config.length // 2
    places = (centres[:, :, None] + offsets).clamp(0, num_tokens - 1)
    return _exact(places.flatten(1), num_tokens, config, generator)


def random_masks(num_masks: int, num_tokens: int, config: MaskConfig, generator: torch.Generator) -> Tensor:
    """Single random tokens (fairseq ``random_masking`` of examples/data2vec/models/modalities/base.py).

    Returns:
        (num_masks, num_tokens) bool, True = removed: all but the ``num_kept`` smallest of as many uniform numbers.
    """
    num_kept = num_tokens - config.num_removed(num_tokens)
    order = torch.rand(num_masks, num_tokens, generator=generator).argsort(dim=1)
    return torch.ones(num_masks, num_tokens, dtype=torch.bool).scatter_(1, order[:, :num_kept], False)


class Draws(Protocol):
    """What spans need of a ``numpy.random.Generator``."""

    def random(self) -> float:
        """A number from [0, 1)."""
        ...

    def choice(self, a: Any, size: int, replace: bool) -> Any:
        """``size`` elements of ``a``, or of range(a)."""
        ...


def span_masks(lengths: Sequence[int], num_tokens: int, config: MaskConfig, draws: Sequence[Draws]) -> Tensor:
    """Spans at random starts, then as many tokens removed in every row (wav2vec 2.0; fairseq ``compute_mask_indices``).

    Args:
        lengths: tokens of each row that are not padding; no span reaches beyond.
        num_tokens: T.
        config: share, span length, and which way counts are made equal over all rows.
        draws: one generator per row; the last one also makes the counts equal, as in the reference.
    Returns:
        (rows, num_tokens) bool, True = removed.
    Raises:
        ValueError: if a row would lose all its tokens.
    """
    rows = [_spans(length, config, row) for length, row in zip(lengths, draws, strict=True)]
    target = (max if config.add_spans else min)(map(len, rows))
    mask = torch.zeros(len(rows), num_tokens, dtype=torch.bool)
    for row, places in zip(mask, rows, strict=True):
        if len(places) > target:
            places = list(draws[-1].choice(places, target, replace=False))
        row[places] = True
        if len(places) < target:
            unmasked = (~row).nonzero().flatten().tolist()
            row[list(draws[-1].choice(unmasked, target - len(places), replace=False))] = True
    return mask


def _spans(length: int, config: MaskConfig, draws: Draws) -> list[int]:
    """Places that the spans of one row cover, ascending."""
    number = max(1, int(config.prob * length / config.length + draws.random()))
    room = length - config.length if length - config.length > number else number + 1
    starts = draws.choice(room, number, replace=False)
    places = sorted({int(start) + offset for start in starts for offset in range(config.length)} & set(range(length)))
    if len(places) >= length:
        raise ValueError(f"mask.prob {config.prob}: spans of {config.length} cover all {length} tokens")
    return places


def _centres(num_masks: int, num_tokens: int, block: int, config: MaskConfig, generator: torch.Generator) -> Tensor:
    """Centres of blocks of ``block`` tokens each, (num_masks, number)."""
    number = int(num_tokens * ((_marked_share(config) + config.adjust) / block))
    return torch.randint(0, num_tokens, (num_masks, number), generator=generator)


def _exact(places: Tensor, num_tokens: int, config: MaskConfig, generator: torch.Generator) -> Tensor:
    """Mark ``places`` (num_masks, any), then random tokens more or less until each row has its exact number."""
    marked = torch.zeros(len(places), num_tokens).scatter_(1, places, 1.0)
    target = int(num_tokens * _marked_share(config))
    for row, surplus in zip(marked, (marked.sum(dim=1) - target).int().tolist(), strict=True):
        if surplus > 0:
            row[torch.multinomial(row, surplus, generator=generator)] = 0
        elif surplus < 0:
            row[torch.multinomial(1 - row, -surplus, generator=generator)] = 1
    return (marked == 0) if config.inverse else (marked == 1)


def _marked_share(config: MaskConfig) -> float:
    return 1 - config.prob if config.inverse else config.prob
