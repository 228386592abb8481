"""Batches of masked images."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from data_pipelines.batches.base import (
    AUGMENT,
    MASK,
    MAX_SUBSTITUTES,
    SUBSTITUTE,
    Batch,
    Masking,
    first_usable,
    kept_per_view,
)
from data_pipelines.config import ImageSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.order import sample_at, stream_key
from data_pipelines.reader import Reader
from data_pipelines.transforms.image import image_bytes, load_image


class ImageBatches:
    """Positions count samples (see ``BatchSource``)."""

    def __init__(self, reader: Reader, config: ImageSourceConfig, seed: int, masking: Masking) -> None:
        """Args: the open shards, the transforms, the run's seed, and who makes masks."""
        self._reader = reader
        self._config = config
        self._seed = seed
        self._masking = masking

    def batch(self, start: int, size: int) -> Batch:
        """The samples at ``size`` positions from ``start`` on.

        Raises:
            DataError: if a sample and all its substitutes are unusable.
        """
        epochs, samples = sample_at(self._seed, np.arange(start, start + size), len(self._reader))
        rejected: list[str] = []
        images = []
        for place, epoch in enumerate(epochs.tolist()):
            candidates = self._candidates(int(samples[place]), epoch)
            samples[place], image = first_usable(candidates, partial(self._image, epoch=epoch), rejected)
            images.append(image)
        keys = [
            stream_key(self._seed, MASK, epoch, sample)
            for epoch, sample in zip(epochs.tolist(), samples.tolist(), strict=True)
        ]
        mask = self._masking.masks(keys, [self._config.size] * size)
        return Batch(
            modality="image",
            position=start,
            source=torch.from_numpy(np.stack(images)),
            mask=mask,
            num_kept=kept_per_view(mask),
            padding=None,
            sample=torch.from_numpy(samples),
            epoch=torch.from_numpy(epochs),
            rejected=tuple(rejected),
        )

    def _candidates(self, sample: int, epoch: int) -> Iterator[int]:
        yield sample
        for attempt in range(MAX_SUBSTITUTES - 1):
            yield stream_key(self._seed, SUBSTITUTE, epoch, sample, attempt) % len(self._reader)

    def _image(self, sample: int, epoch: int) -> np.ndarray:
        data = self._reader.read(sample).members
        generator = np.random.default_rng(stream_key(self._seed, AUGMENT, epoch, sample))
        try:
            return load_image(image_bytes(data), self._config, generator)
        except DataError as error:
            raise DataError(f"{self._reader.describe(sample)}: {error}") from error
