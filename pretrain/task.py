"""data2vec 2.0 on one microbatch: the only place where a batch meets the model."""

from typing import NamedTuple

import torch
from torch import Tensor

from data_pipelines.batching import Batch, MaskFunction
from data_pipelines.order import stream_key
from model.config import ModelConfig
from model.data2vec import StudentOutput
from model.losses import LossTerm, objective
from model.masking import Views, block_masks_2d, split_views
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.zero import StudentEngine

_NOISE = 0x6E6F697365  # sets the stream of decoder noise apart from those of order, augmentation and masks


def mask_function(config: ModelConfig) -> MaskFunction:
    """Stream key -> (M, T) bool masks of one sample, True = removed; runs in the loader's workers."""

    def masks(key: int) -> Tensor:
        generator = torch.Generator().manual_seed(key)
        return block_masks_2d(config.num_views, config.image.grid_size, config.image.mask, generator)

    return masks


class Observation(NamedTuple):
    """Detached tensors of one microbatch, for spread and health."""

    prediction: Tensor
    """(N, R, D) at the removed tokens."""
    target: Tensor
    """(N, R, D)."""
    frontend: Tensor
    """(B, T, D) tokens before positions and masking."""
    student: Tensor
    """(N, V, D) encoder output without extra tokens."""
    teacher: Tensor
    """(B, T, D) encoder output without extra tokens."""


class Data2VecTask:
    """Batch -> student and teacher -> loss terms."""

    def __init__(
        self,
        config: ModelConfig,
        engine: StudentEngine,
        teacher: ShardedTeacher,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        """Args: the model's config, its two networks, the device and precision of inputs, the run's seed."""
        self._config = config
        self._engine = engine
        self._teacher = teacher
        self._device = device
        self._dtype = dtype
        self._seed = seed

    @staticmethod
    def counts(batch: Batch) -> dict[str, int]:
        """What the terms' sums are divided by, known on the host: removed tokens and rows of a batch."""
        tokens = int(batch.mask.sum())
        return {"regression": tokens, "cls": batch.mask.shape[0] * batch.mask.shape[1], "reconstruction": tokens}

    def __call__(self, batch: Batch, position: int) -> tuple[dict[str, LossTerm], Observation]:
        """Loss terms of one microbatch (sums over its own tokens and rows).

        Args:
            batch: in host memory.
            position: of the stream at the start of this step; keys the decoder noise.
        """
        noise_seeds = [stream_key(self._seed, _NOISE, position, int(sample)) for sample in batch.sample]
        batch = batch.to(self._device, non_blocking=True)
        source = batch.source.to(self._dtype)
        views = split_views(batch.mask, self._config.image.num_kept)
        with torch.no_grad():
            goal = self._teacher.ready().targets(source)
        student: StudentOutput = self._engine(source, views, self._noise(noise_seeds, views))
        terms = objective(self._config, student, goal.targets, views, batch.source)
        return terms, self._observe(student, goal.targets, goal.encoded, views)

    def _noise(self, seeds: list[int], views: Views) -> Tensor:
        """Noise (N, R, D) for the decoder, each sample's part from its own generator: any layout draws the same."""
        num_views = views.removed.shape[0] // len(seeds)
        shape = (num_views, views.removed.shape[1], self._config.encoder.dim)
        generator = torch.Generator(self._device)
        parts = [
            torch.randn(shape, generator=generator.manual_seed(seed), device=self._device, dtype=self._dtype)
            for seed in seeds
        ]
        return torch.cat(parts) * self._config.image.decoder.noise_std

    def _observe(self, student: StudentOutput, targets: Tensor, teacher: Tensor, views: Views) -> Observation:
        num_extra = self._config.image.num_extra_tokens
        num_views = views.mask.shape[0] // targets.shape[0]
        index = views.removed.unsqueeze(-1).expand(-1, -1, targets.shape[-1])
        return Observation(
            prediction=student.prediction.detach(),
            target=targets.repeat_interleave(num_views, dim=0).gather(1, index),
            frontend=student.tokens.detach(),
            student=student.encoded[:, num_extra:].detach(),
            teacher=teacher[:, num_extra:],
        )
