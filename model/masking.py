"""Masks of views and the indices that follow from them; pure functions of an explicit generator."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.config import MaskConfig


class Views(NamedTuple):
    """Which tokens the N = B * M views keep; rows 0..M-1 belong to sample 0. All rows keep equally many."""

    mask: Tensor
    """(N, T) bool, True = removed."""
    kept: Tensor
    """(N, V) long, ascending token numbers."""
    removed: Tensor
    """(N, R) long, ascending token numbers."""
    restore: Tensor
    """(N, T) long: where each token stands in ``cat([kept, removed])``."""


def split_views(mask: Tensor, num_kept: int) -> Views:
    """Indices of kept and removed tokens.

    Args:
        mask: (B, M, T) bool with ``num_kept`` False in every row.
        num_kept: V, known from the configuration so that the device need not be asked.
    """
    flat = mask.flatten(0, 1)
    shuffled = flat.to(torch.uint8).argsort(dim=1, stable=True)
    return Views(flat, shuffled[:, :num_kept], shuffled[:, num_kept:], shuffled.argsort(dim=1))


def block_masks_2d(num_masks: int, grid_size: int, config: MaskConfig, generator: torch.Generator) -> Tensor:
    """Block masks over a square grid, each with exactly the same number of removed tokens.

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
    num_tokens = grid_size**2
    prob = 1 - config.prob if config.inverse else config.prob
    num_centres = int(num_tokens * ((prob + config.adjust) / config.length**2))
    centres = torch.randint(0, num_tokens, (num_masks, num_centres), generator=generator)
    offsets = torch.arange(config.length) - config.length // 2
    rows = (centres // grid_size)[:, :, None, None] + offsets[:, None]
    columns = (centres % grid_size)[:, :, None, None] + offsets
    cells = rows.clamp(0, grid_size - 1) * grid_size + columns.clamp(0, grid_size - 1)
    marked = torch.zeros(num_masks, num_tokens).scatter_(1, cells.flatten(1), 1.0)
    target = int(num_tokens * prob)
    for row, surplus in zip(marked, (marked.sum(dim=1) - target).int().tolist(), strict=True):
        if surplus > 0:
            row[torch.multinomial(row, surplus, generator=generator)] = 0
        elif surplus < 0:
            row[torch.multinomial(1 - row, -surplus, generator=generator)] = 1
    return (marked == 0) if config.inverse else (marked == 1)
