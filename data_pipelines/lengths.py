"""Batches of recordings of about the same length, planned from lengths alone: nothing to store, nothing to replay."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.order import sample_at, stream_key

_TIES = 0x74696573  # sets the order of equally long recordings apart from all other streams
_NUM_SPARES = 64
_EPOCHS_KEPT = 2
"""Orders in memory: worker processes meet two epochs at their border."""


class PlannedBatch(NamedTuple):
    """Which recordings make a batch; lengths in waveform samples, descending."""

    epoch: int
    samples: NDArray[np.int64]
    """(B,) numbers in the data set."""
    lengths: NDArray[np.int64]
    """(B,) at most ``max_length``."""
    spares: NDArray[np.int64]
    """Substitutes for any of them: the next longer recordings of the epoch's order; only the batch of the longest has
    none such, and gets those that the order begins with, itself among them."""


class LengthPlan:
    """Position of the endless stream -> batch, a pure function of lengths and seed.

    As fairseq does it: recordings shorter than ``min_length`` are left out, all others are sorted by length, longest
    first and equal ones in random order, and cut into batches whose longest recording times their number is at most
    ``batch_length``. Every epoch takes all batches in another order. Where they are cut depends on lengths only, so
    every epoch has equally many, and every rank takes the same number of steps.
    """

    def __init__(
        self, lengths: NDArray[np.int64], *, min_length: int, max_length: int, batch_length: int, seed: int
    ) -> None:
        """Plan; all lengths in waveform samples.

        Args:
            lengths: (N,) of all recordings of the data set.
            min_length: shorter ones are never drawn; at least one must not be shorter.
            max_length: longer ones count as this, and are to be cut to it; at most ``batch_length``.
            batch_length: most samples in a batch, padding included.
            seed: of the run.
        """
        self.lengths = np.minimum(lengths, max_length)
        """(N,) that each recording counts with."""
        self._drawn = np.flatnonzero(lengths >= min_length)
        self._seed = seed
        descending, self._groups = np.unique(-self.lengths[self._drawn], return_inverse=True)
        """Number of a recording's length among the distinct ones, longest first."""
        self._ends = _cut(np.sort(-descending[self._groups])[::-1], batch_length)
        self._orders: dict[int, NDArray[np.int64]] = {}

    @property
    def num_batches(self) -> int:
        """Batches of one epoch."""
        return len(self._ends)

    def batch_at(self, position: int) -> PlannedBatch:
        """The batch at a position of the stream, which counts batches from 0."""
        (epoch,), (number,) = sample_at(self._seed, [position], self.num_batches)
        order = self._order(int(epoch))
        start, end = int(self._ends[number - 1]) if number else 0, int(self._ends[number])
        samples = order[start:end]
        spares = order[max(0, start - _NUM_SPARES) : start or _NUM_SPARES]
        return PlannedBatch(int(epoch), samples, self.lengths[samples], spares)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """All samples that are drawn, longest first, in the random order of one epoch among equals."""
        if epoch not in self._orders:
            num_drawn = len(self._drawn)
            places = epoch * num_drawn + np.arange(num_drawn)
            ties = sample_at(stream_key(self._seed, _TIES), places, num_drawn)[1]
            if len(self._orders) == _EPOCHS_KEPT:
                del self._orders[min(self._orders)]
            self._orders[epoch] = self._drawn[np.argsort(self._groups * num_drawn + ties)]
        return self._orders[epoch]


def _cut(descending: NDArray[np.int64], batch_length: int) -> NDArray[np.int64]:
    """Where batches end."""
    ends, start = [], 0
    while start < len(descending):
        start = min(start + batch_length // int(descending[start]), len(descending))
        ends.append(start)
    return np.array(ends)
