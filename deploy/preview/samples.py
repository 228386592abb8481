"""The first samples of a recipe's run, exactly as its loader delivers them."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.batches.base import Batch
from data_pipelines.loader import Loader, build_loader
from data_pipelines.reader import Reader, Sample
from pretrain.config import RunConfig
from pretrain.masking import masking_of


class Shown(NamedTuple):
    """One sample of a batch."""

    stored: Sample
    """What the shard holds."""
    source: NDArray[np.generic]
    """Its row of ``Batch.source``."""
    mask: NDArray[np.bool_]
    """(M, T), True = removed."""
    num_tokens: int
    """Of the T those that are no padding."""


def first_samples(config: RunConfig, modality: str, path: str, number: int) -> list[Shown]:
    """What a run over these shards begins with.

    Args:
        config: transforms, masks and seed are those of this run.
        modality: which of its sources.
        path: shards, as ``data.path``.
        number: samples; audio gives so many of its first planned batches.
    Raises:
        DataError: if shards or samples cannot be used.
    """
    changes: dict[str, Any] = {modality: dataclasses.replace(config.data.sources[modality], path=path)}
    loader = build_loader(
        dataclasses.replace(config.data, num_workers=0, **changes),
        modality,
        seed=config.training.seed,
        masking=masking_of(config.model, modality),
        dp_rank=0,
        dp_size=1,
        microbatch_size=1 if modality == "audio" else number,
        num_microbatches=1,
    )
    reader = Reader(path)
    try:
        return _collect(loader, reader, number)
    finally:
        loader.close()
        reader.close()


def _collect(loader: Loader, reader: Reader, number: int) -> list[Shown]:
    shown: list[Shown] = []
    while len(shown) < number:
        batch = next(loader)
        shown += [_row(batch, place, reader) for place in range(len(batch.sample))]
    return shown[:number]


def _row(batch: Batch, place: int, reader: Reader) -> Shown:
    num_tokens = batch.mask.shape[-1]
    if batch.padding is not None:
        num_tokens -= int(batch.padding[place].sum())
    return Shown(
        stored=reader.read(int(batch.sample[place])),
        source=batch.source[place].numpy(),
        mask=batch.mask[place].numpy(),
        num_tokens=num_tokens,
    )
