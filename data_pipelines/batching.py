"""Batches of masked images: what one is, and how the samples at given positions become one."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError
from data_pipelines.order import sample_at, stream_key
from data_pipelines.reader import Reader
from data_pipelines.transforms.image import image_bytes, load_image

MaskFunction = Callable[[int], Tensor]
"""Stream key -> (M, T) bool, True = removed."""

_AUGMENT, _MASK, _SUBSTITUTE = 0x617567, 0x6D61736B, 0x737562  # set the random streams of a sample apart
_MAX_SUBSTITUTES = 16


@dataclass(frozen=True)
class Batch:
    """One microbatch of B samples."""

    modality: str
    """``image``."""
    source: Tensor
    """(B, C, H, W) float32, normalised."""
    mask: Tensor
    """(B, M, T) bool, True = removed."""
    sample: Tensor
    """(B,) int64, number of the sample in the data set."""
    epoch: Tensor
    """(B,) int64."""
    rejected: tuple[str, ...] = ()
    """Unusable samples that were replaced by others: shard, key and reason of each."""

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
            sample=function(self.sample),
            epoch=function(self.epoch),
        )


class ImageBatches:
    """Positions of the endless stream -> Batch. Pure: the same positions give the same batch in any process."""

    def __init__(self, reader: Reader, config: DataConfig, seed: int, mask_function: MaskFunction) -> None:
        """Args: the open shards, the transforms, the run's seed, and who makes masks."""
        self._reader = reader
        self._transform = config.image
        self._seed = seed
        self._mask_function = mask_function

    def batch(self, start: int, size: int) -> Batch:
        """The samples at ``size`` positions from ``start`` on.

        Raises:
            DataError: if a sample and all its substitutes are unusable.
        """
        epochs, samples = sample_at(self._seed, np.arange(start, start + size), len(self._reader))
        rejected: list[str] = []
        images = []
        for place, epoch in enumerate(epochs):
            samples[place], image = self._usable(int(samples[place]), int(epoch), rejected)
            images.append(image)
        masks = [
            self._mask_function(stream_key(self._seed, _MASK, int(epoch), int(sample)))
            for epoch, sample in zip(epochs, samples, strict=True)
        ]
        return Batch(
            modality="image",
            source=torch.from_numpy(np.stack(images)),
            mask=torch.stack(masks),
            sample=torch.from_numpy(samples),
            epoch=torch.from_numpy(epochs),
            rejected=tuple(rejected),
        )

    def _usable(self, sample: int, epoch: int, rejected: list[str]) -> tuple[int, np.ndarray]:
        """A sample and its image, or those of the first usable substitute."""
        candidate = sample
        for attempt in range(_MAX_SUBSTITUTES):
            try:
                return candidate, self._image(candidate, epoch)
            except DataError as error:
                rejected.append(str(error))
                candidate = stream_key(self._seed, _SUBSTITUTE, epoch, sample, attempt) % len(self._reader)
        raise DataError(f"{rejected[-1]} ({_MAX_SUBSTITUTES} samples in a row are unusable)")

    def _image(self, sample: int, epoch: int) -> np.ndarray:
        data = self._reader.read(sample).members
        generator = np.random.default_rng(stream_key(self._seed, _AUGMENT, epoch, sample))
        try:
            return load_image(image_bytes(data), self._transform, generator)
        except DataError as error:
            raise DataError(f"{self._reader.describe(sample)}: {error}") from error
