"""data2vec 2.0 on one microbatch: the only place where a batch meets the model."""

from typing import NamedTuple

import torch
from torch import Tensor

from data_pipelines.batches.base import Batch
from data_pipelines.order import stream_key
from model.accounting import train_flops_per_sample
from model.config import ModelConfig
from model.data2vec import StudentOutput
from model.losses import LossTerm, objective, term_counts
from model.masking import Views, split_views, take
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.zero import StudentEngine

_NOISE, _DROPOUT, _LAYER = 0x6E6F697365, 0x64726F70, 0x6C61796572
"""Set the streams of decoder noise, dropout and left-out blocks apart from those of order, augmentation and masks."""


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
        self.modalities = tuple(config.modalities)

    def label(self, modality: str, name: str) -> str:
        """What a figure of one modality is called in a run: its plain name if there is only one."""
        return name if len(self.modalities) == 1 else f"{modality}_{name}"

    def counts(self, batch: Batch) -> dict[str, int]:
        """What the terms' sums are divided by, by label; known on the host."""
        num_samples, num_views, num_tokens = batch.mask.shape
        counts = term_counts(num_samples * num_views, num_tokens - batch.num_kept)
        return {self.label(batch.modality, name): count for name, count in counts.items()}

    def flops(self, batch: Batch) -> int:
        """Mask-aware FLOPs of one microbatch (``train_flops_per_sample``)."""
        each = train_flops_per_sample(self._config, batch.modality, batch.length, batch.num_kept)
        return len(batch.source) * each

    def __call__(self, batch: Batch, position: int) -> tuple[dict[str, LossTerm], Observation]:
        """Loss terms of one microbatch by label (sums over its own tokens and rows).

        Args:
            batch: in host memory.
            position: of the modality's stream at the start of this step; keys decoder noise and left-out blocks, so
                that both are the same for every layout. Dropout is keyed by the microbatch, and so the same for
                layouts that cut the same microbatches.
        """
        side, modality = self._config.modalities[batch.modality], batch.modality
        noise_seeds = [stream_key(self._seed, _NOISE, position, int(sample)) for sample in batch.sample]
        batch = batch.to(self._device, non_blocking=True)
        source = batch.source.to(self._dtype) if batch.source.is_floating_point() else batch.source
        views = split_views(batch.mask, batch.num_kept)
        torch.manual_seed(stream_key(self._seed, _DROPOUT, batch.position))
        student: StudentOutput = self._engine(
            source,
            views,
            self._noise(noise_seeds, views, side.decoder.noise_std),
            modality=modality,
            padding=batch.padding,
            skipped=self._skipped(modality, position),
        )
        goal = self._teacher.ready().targets(source, student, modality=modality, padding=batch.padding)
        terms = objective(side, student, goal.targets, views, batch.source)
        num_extra = side.num_extra_tokens
        seen = Observation(
            prediction=student.prediction.detach(),
            target=take(goal.targets, views.removed),
            frontend=student.tokens.detach(),
            student=student.encoded[:, num_extra:].detach(),
            teacher=goal.encoded[:, num_extra:],
        )
        return {self.label(modality, name): term for name, term in terms.items()}, seen

    def _skipped(self, modality: str, position: int) -> frozenset[int]:
        """Blocks that this step leaves out, prenet first; the same for all microbatches and ranks."""
        prenet = self._config.modalities[modality]
        shared = self._config.encoder
        chances = [prenet.prenet_layer_dropout] * prenet.prenet_depth + [shared.layer_dropout] * shared.depth
        return frozenset(
            number
            for number, chance in enumerate(chances)
            if chance > 0 and stream_key(self._seed, _LAYER, position, number) < chance * 2**63
        )

    def _noise(self, seeds: list[int], views: Views, std: float) -> Tensor:
        """Noise (N, R, D) for the decoder, each sample's part from its own generator: any layout draws the same."""
        num_views = views.removed.shape[0] // len(seeds)
        shape = (num_views, views.removed.shape[1], self._config.encoder.dim)
        generator = torch.Generator(self._device)
        parts = [
            torch.randn(shape, generator=generator.manual_seed(seed), device=self._device, dtype=self._dtype)
            for seed in seeds
        ]
        return torch.cat(parts) * std
