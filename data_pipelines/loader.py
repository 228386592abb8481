"""Loaders: batches from worker processes, the same global batches on any number of ranks and workers."""

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_pipelines.batches.audio import AudioBatches
from data_pipelines.batches.base import Batch, BatchSource, Masking
from data_pipelines.batches.image import ImageBatches
from data_pipelines.batches.text import TextBatches
from data_pipelines.config import DataConfig, ImageSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.reader import Reader
from data_pipelines.transforms.image import image_member, load_image
from data_pipelines.workers import process_loader, results

BATCHES: dict[str, Callable[..., BatchSource]] = {"image": ImageBatches, "audio": AudioBatches, "text": TextBatches}
"""By modality: (reader, source configuration, seed, masking) -> batches."""


def build_loader(
    config: DataConfig,
    modality: str,
    *,
    seed: int,
    masking: Masking,
    dp_rank: int,
    dp_size: int,
    microbatch_size: int,
    num_microbatches: int,
    pin_memory: bool = False,
    timeout_seconds: float = 0,
) -> "Loader":
    """Open the shards and prepare the endless stream of one rank's microbatches; workers start when it is iterated.

    Step s consumes the positions [s * G, (s + 1) * G) of the order, G = ``dp_size * num_microbatches *
    microbatch_size``; rank r takes the r-th contiguous share, cut into microbatches.

    Args:
        config: what to read and how.
        modality: which of its sources.
        seed: of the run; keys order, augmentation, masks.
        masking: makes the masks; runs in the workers.
        dp_rank: this rank.
        dp_size: ranks that share a global batch.
        microbatch_size: units per batch: samples, of audio planned batches.
        num_microbatches: batches per step of one rank.
        pin_memory: deliver in page-locked memory.
        timeout_seconds: how long worker processes may take for a batch; 0 for ever.
    Raises:
        DataError: if the shards cannot be used.
    """
    reader = Reader(config.path_of(modality))
    batches = BATCHES[modality](reader, config.sources[modality], seed, masking)
    starts = _Starts(dp_rank, dp_size, num_microbatches, microbatch_size)
    return Loader(
        process_loader(
            lambda start: batches.batch(start, microbatch_size),
            starts,
            num_workers=config.num_workers,
            prefetch=config.prefetch_batches,
            pin_memory=pin_memory,
            timeout_seconds=timeout_seconds,
        ),
        reader,
        starts,
        max_bad_samples=config.max_bad_samples,
    )


class _Starts:
    """Where one rank's microbatches begin in the endless stream, from ``position`` on."""

    def __init__(self, dp_rank: int, dp_size: int, num_microbatches: int, microbatch_size: int) -> None:
        self.num_microbatches = num_microbatches
        self.global_batch_size = dp_size * num_microbatches * microbatch_size
        self.position = 0
        self._first = dp_rank * num_microbatches * microbatch_size
        self._microbatch_size = microbatch_size

    def __iter__(self) -> Iterator[int]:
        for step in itertools.count(self.position + self._first, self.global_batch_size):
            yield from (step + place * self._microbatch_size for place in range(self.num_microbatches))


class Loader:
    """Batches for ever, and how long the consumer waited."""

    def __init__(self, batches: "DataLoader[Any]", reader: Reader, starts: _Starts, *, max_bad_samples: int) -> None:
        """``build_loader`` makes these."""
        self.num_microbatches = starts.num_microbatches
        self.global_batch_size = starts.global_batch_size
        self.wait_seconds = 0.0
        """Time spent in waiting for batches, cumulative."""
        self._batches = batches
        self._iterator: Generator[Any, None, None] | None = None
        self._reader = reader
        self._starts = starts
        self._max_bad_samples = max_bad_samples
        self._bad_samples: set[str] = set()

    def start_at(self, position: int) -> None:
        """Begin where earlier steps ended, instead of at 0; before the first batch.

        Args:
            position: units of all ranks that those steps consumed.
        """
        assert self._iterator is None, "the stream flows already"
        self._starts.position = position

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        """The next microbatch.

        Raises:
            DataError: when more samples were unusable than the budget allows, or a worker process died or hangs.
        """
        started = time.perf_counter()
        if self._iterator is None:
            self._iterator = results(self._batches)
        batch: Batch = next(self._iterator)
        self.wait_seconds += time.perf_counter() - started
        self._count_bad(batch)
        return batch

    def _count_bad(self, batch: Batch) -> None:
        self._bad_samples.update(batch.rejected)
        if len(self._bad_samples) > self._max_bad_samples:
            self.close()
            raise DataError(
                f"{batch.rejected[-1]} (unusable sample number {len(self._bad_samples)}, data.max_bad_samples is "
                f"{self._max_bad_samples}; 'd2v shards verify {self._reader.path}' lists all damage)"
            )

    def close(self) -> None:
        """End the worker processes and close the shards."""
        if self._iterator is not None:
            self._iterator.close()
        self._reader.close()


def labelled_images(config: DataConfig, path: str, batch_size: int) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Every sample once, in index order, without augmentation.

    Args:
        config: how to read.
        path: shards, as ``config.path``.
        batch_size: samples B per batch; the last batch may be smaller.
    Yields:
        images (B, C, H, W) float32 and labels (B,) int64.
    Raises:
        DataError: if the shards cannot be used, a sample is damaged, or one carries no label.
    """
    reader, source = Reader(path), config.image
    assert source is not None

    def batch(start: int) -> tuple[Tensor, Tensor]:
        rows = [_labelled(reader, source, sample) for sample in range(start, min(start + batch_size, len(reader)))]
        images, labels = zip(*rows, strict=True)
        return torch.from_numpy(np.stack(images)), torch.tensor(labels)

    starts = range(0, len(reader), batch_size)
    yield from results(process_loader(batch, starts, num_workers=config.num_workers, prefetch=config.prefetch_batches))
    reader.close()


def _labelled(reader: Reader, config: ImageSourceConfig, sample: int) -> tuple[np.ndarray, int]:
    stored = reader.read(sample, image_member)
    if stored.label is None:
        raise DataError(f"{reader.describe(sample)}: carries no label (.cls member), which evaluation needs")
    try:
        return load_image(stored.content, config), stored.label
    except DataError as error:
        raise DataError(f"{reader.describe(sample)}: {error}") from error
