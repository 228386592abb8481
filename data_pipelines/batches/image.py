"""Batches of masked images."""

import numpy as np
import torch

from data_pipelines.batches.base import AUGMENT, Batch, Masking, kept_per_view
from data_pipelines.batches.samples import load_samples
from data_pipelines.config import ImageSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.order import stream_key
from data_pipelines.reader import Reader
from data_pipelines.transforms.image import image_member, load_image


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
        loaded = load_samples(self._image, start=start, size=size, num_samples=len(self._reader), seed=self._seed)
        mask = self._masking.masks(loaded.mask_keys, [self._config.size] * size)
        return Batch(
            modality="image",
            position=start,
            source=torch.from_numpy(np.stack(loaded.contents)),
            mask=mask,
            num_kept=kept_per_view(mask),
            padding=None,
            sample=torch.from_numpy(loaded.sample),
            epoch=torch.from_numpy(loaded.epoch),
            rejected=loaded.rejected,
        )

    def _image(self, sample: int, epoch: int) -> np.ndarray:
        data = self._reader.read(sample, image_member).content
        generator = np.random.default_rng(stream_key(self._seed, AUGMENT, epoch, sample))
        try:
            return load_image(data, self._config, generator)
        except DataError as error:
            raise DataError(f"{self._reader.describe(sample)}: {error}") from error
