"""How a model masks its samples, for the data side: made from the configuration, run in the loader's workers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data_pipelines.errors import DataError
from data_pipelines.order import stream_key
from model.accounting import tokens_of
from model.config import ImageConfig, ModelConfig
from model.masking import block_masks_1d, block_masks_2d, random_masks, span_masks
from model.sections import ModalityConfig


class ModelMasking:
    """Implements ``data_pipelines.batches.base.Masking``; all draws of a sample come from its key."""

    def __init__(self, config: ModalityConfig) -> None:
        """Args: the modality's side of the model."""
        self._config = config

    def num_tokens(self, length: int) -> int:
        """Tokens T of an input of ``length``."""
        return tokens_of(self._config, length)

    def masks(self, keys: Sequence[int], lengths: Sequence[int], padded_length: int | None = None) -> Tensor:
        """Masks (B, M, T) bool, True = removed. Only spans heed padding, and are made equal over the batch.

        Raises:
            DataError: if spans would remove all of a sample.
        """
        num_tokens = self.num_tokens(max(lengths) if padded_length is None else padded_length)
        if self._config.mask.kind == "span":
            return self._spans(keys, lengths, num_tokens)
        return torch.stack([self._of_sample(key, num_tokens) for key in keys])

    def _of_sample(self, key: int, num_tokens: int) -> Tensor:
        config, generator = self._config, torch.Generator().manual_seed(key)
        if config.mask.kind == "random":
            return random_masks(config.num_views, num_tokens, config.mask, generator)
        if isinstance(config, ImageConfig):
            return block_masks_2d(config.num_views, config.grid_size, config.mask, generator)
        return block_masks_1d(config.num_views, num_tokens, config.mask, generator)

    def _spans(self, keys: Sequence[int], lengths: Sequence[int], num_tokens: int) -> Tensor:
        views = range(self._config.num_views)
        valid = [self.num_tokens(length) for length in lengths for _ in views]
        draws = [np.random.default_rng(stream_key(key, view)) for key in keys for view in views]
        try:
            masks = span_masks(valid, num_tokens, self._config.mask, draws)
        except ValueError as error:
            raise DataError(f"a sample is too short for its masks: {error}") from error
        return masks.unflatten(0, (len(keys), -1))


def masking_of(config: ModelConfig, modality: str) -> ModelMasking:
    """How ``config`` masks a modality."""
    return ModelMasking(config.modalities[modality])
