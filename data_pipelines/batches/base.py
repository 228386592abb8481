"""What a batch is, who makes its masks, and how an unusable sample is replaced: common to all modalities."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from data_pipelines.errors import DataError

AUGMENT, MASK, SUBSTITUTE = 0x617567, 0x6D61736B, 0x737562
"""Set the random streams of a sample apart, as the second part of its ``stream_key``."""
MAX_SUBSTITUTES = 16

Content = TypeVar("Content")


class Masking(Protocol):
    """How a model masks one modality; handed in, for the data side never imports the model.

    ``length`` is that of the raw input: waveform samples of audio, tokens of text, pixels of a side of images.
    """

    def num_tokens(self, length: int) -> int:
        """Tokens T that the model makes of an input of ``length``."""
        ...

    def masks(self, keys: Sequence[int], lengths: Sequence[int], padded_length: int | None = None) -> Tensor:
        """Masks (B, M, T) bool, True = removed; equally many removed in every row.

        Args:
            keys: one stream key per sample.
            lengths: one per sample, without padding.
            padded_length: that all samples are padded to; None for the longest. T is ``num_tokens`` of it.
        """
        ...


@dataclass(frozen=True)
class Batch:
    """One microbatch of B samples."""

    modality: str
    """``image``, ``audio`` or ``text``."""
    position: int
    """Of its first unit in the endless stream of its modality: the same for every layout of the run."""
    source: Tensor
    """Images (B, C, H, W) float32, waveforms (B, L) float32, or token numbers (B, T) int64."""
    mask: Tensor
    """(B, M, T) bool, True = removed."""
    num_kept: int
    """V, tokens that every view keeps."""
    padding: Tensor | None
    """(B, T) bool, True = padding; None if there is none in the batch."""
    sample: Tensor
    """(B,) int64, number of the sample in the data set."""
    epoch: Tensor
    """(B,) int64."""
    seconds: float = 0.0
    """Duration of all its waveforms together; 0 for other modalities."""
    rejected: tuple[str, ...] = ()
    """Unusable samples that were replaced by others: shard, key and reason of each."""

    @property
    def length(self) -> int:
        """Of the raw input, as ``Masking`` counts it."""
        return self.source.shape[-1]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Batch":
        """The same batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked host memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return dataclasses.replace(
            self,
            source=function(self.source),
            mask=function(self.mask),
            padding=None if self.padding is None else function(self.padding),
            sample=function(self.sample),
            epoch=function(self.epoch),
        )


class BatchSource(Protocol):
    """Positions of a modality's endless stream -> Batch. Pure: the same in any process."""

    def batch(self, start: int, size: int) -> Batch:
        """The ``size`` units from position ``start`` on.

        Raises:
            DataError: if a sample and all its substitutes are unusable.
        """
        ...


def kept_per_view(mask: Tensor) -> int:
    """V of masks (B, M, T) in host memory."""
    counts = (~mask).sum(dim=-1)
    assert (counts == counts[0, 0]).all(), "views of one batch keep different numbers of tokens"
    return int(counts[0, 0])


def first_usable(candidates: Iterable[int], load: Callable[[int], Content], rejected: list[str]) -> tuple[int, Content]:
    """The first sample that can be loaded, and its content; reasons of the others go to ``rejected``.

    Args:
        candidates: the sample and its substitutes, in the order in which they are tried.
        load: sample -> content; raises DataError if it is unusable.
        rejected: receives one line per unusable sample.
    Raises:
        DataError: if all are unusable.
    """
    before = len(rejected)
    for candidate in candidates:
        try:
            return candidate, load(candidate)
        except DataError as error:
            rejected.append(str(error))
    raise DataError(f"{rejected[-1]} ({len(rejected) - before} samples in a row are unusable)")
