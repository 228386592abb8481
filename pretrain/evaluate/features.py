"""Frozen features of labelled images: by any encoder, by their raw pixels; and their standardisation."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from data_pipelines.errors import DataError

PIXEL_SIDE = 32
"""Larger images are averaged down to this side before their pixels are used as features."""

Encode = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) -> features (B, D)."""


class Features(NamedTuple):
    """Features of a set of samples by several encoders."""

    values: dict[str, Tensor]
    """Per encoder (N, D) fp32 on the CPU."""
    labels: Tensor
    """(N,) int64."""


def pixels(images: Tensor) -> Tensor:
    """Raw pixels (B, C, H, W) -> (B, C * h * w), where h, w are at most ``PIXEL_SIDE``."""
    height, width = images.shape[-2:]
    if max(height, width) > PIXEL_SIDE:
        images = functional.adaptive_avg_pool2d(images, (min(height, PIXEL_SIDE), min(width, PIXEL_SIDE)))
    return images.flatten(1)


@torch.no_grad()
def extract(encoders: Mapping[str, Encode], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Features:
    """Encode every image once by every encoder; the images are read and decoded once for all of them.

    Args:
        encoders: by name; their weights already on ``device``.
        batches: images (B, C, H, W) and labels (B,).
        device: where the encoders run.
    Raises:
        DataError: if there is no sample.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in encoders}
    labels: list[Tensor] = []
    for images, batch_labels in batches:
        images = images.to(device)
        for name, encode in encoders.items():
            values[name].append(encode(images).float().cpu())
        labels.append(batch_labels)
    if not labels:
        raise DataError("there is no sample to evaluate: the shards are empty")
    return Features({name: torch.cat(parts) for name, parts in values.items()}, torch.cat(labels))


def standardise(bank: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale every dimension to mean 0 and deviation 1 over the bank; constant dimensions become 0.

    Args:
        bank: (N, D).
        test: (M, D), moved by the bank's statistics.
    """
    deviation, mean = torch.std_mean(bank, dim=0, correction=0)
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)
    return (bank - mean) / deviation, (test - mean) / deviation
