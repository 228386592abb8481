"""Batches of which every unit is one sample: which samples they are, and keys for their masks."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipelines.batches.base import MASK, MAX_SUBSTITUTES, SUBSTITUTE, Content, first_usable
from data_pipelines.order import sample_at, stream_key

Loaded = TypeVar("Loaded", covariant=True)


class Load(Protocol[Loaded]):
    """Makes the content of a sample as it is in an epoch; raises DataError if it is unusable."""

    def __call__(self, sample: int, epoch: int) -> Loaded:
        """The content."""
        ...


@dataclass(frozen=True)
class Samples(Generic[Content]):
    """The B samples of a batch, loaded."""

    sample: NDArray[np.int64]
    """(B,) number in the data set; of a substitute, where the one in its place was unusable."""
    epoch: NDArray[np.int64]
    """(B,)."""
    contents: list[Content]
    mask_keys: list[int]
    """Stream keys of the masks."""
    rejected: tuple[str, ...]
    """As in ``Batch``."""


def load_samples(load: Load[Content], *, start: int, size: int, num_samples: int, seed: int) -> Samples[Content]:
    """The samples at ``size`` positions from ``start`` on.

    Args:
        load: makes the content of a sample.
        start: position in the endless stream.
        size: B.
        num_samples: in the data set.
        seed: of the run.
    Raises:
        DataError: if a sample and all its substitutes are unusable.
    """
    epochs, samples = sample_at(seed, np.arange(start, start + size), num_samples)
    rejected: list[str] = []
    contents = []
    for place, epoch in enumerate(epochs.tolist()):
        candidates = _candidates(int(samples[place]), epoch, num_samples, seed)
        samples[place], content = first_usable(candidates, partial(load, epoch=epoch), rejected)
        contents.append(content)
    mask_keys = [
        stream_key(seed, MASK, epoch, sample) for epoch, sample in zip(epochs.tolist(), samples.tolist(), strict=True)
    ]
    return Samples(samples, epochs, contents, mask_keys, tuple(rejected))


def _candidates(sample: int, epoch: int, num_samples: int, seed: int) -> Iterator[int]:
    """The sample, then substitutes drawn from the whole data set."""
    yield sample
    for attempt in range(MAX_SUBSTITUTES - 1):
        yield stream_key(seed, SUBSTITUTE, epoch, sample, attempt) % num_samples
