"""A run without files for tests of layouts: a tiny model of any modalities, on batches that are functions of position.

Recordings have different lengths, some batches padding; every option that a pipeline has to heed is on.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from data_pipelines.batches.base import Batch, kept_per_view
from data_pipelines.config import AudioSourceConfig, DataConfig, ImageSourceConfig, TextSourceConfig
from data_pipelines.mixture import interleaved
from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.sections import AlibiConfig, DecoderConfig, EncoderConfig, LossConfig, MaskConfig, TargetConfig
from pretrain.config import RunConfig
from pretrain.masking import masking_of
from pretrain.parallel.grid import Grid
from pretrain.sections import (
    CheckpointSection,
    EmaSection,
    HealthSection,
    LoggingSection,
    OptimSection,
    ParallelSection,
    PrecisionSection,
    ScheduleSection,
    TrainingSection,
)

STEPS = 10
DEPTH = 4


def run_config(modalities: list[str], parallel: ParallelSection, dropout: float = 0.0, steps: int = STEPS) -> RunConfig:
    """Adam's eps is so large that updates are about proportional to gradients: a wrong scale shows at once."""
    return RunConfig(
        name="synthetic",
        model=model_config(modalities, dropout),
        data=DataConfig(
            image=ImageSourceConfig(size=16, batch_size=4, microbatch_size=2) if "image" in modalities else None,
            audio=AudioSourceConfig(min_seconds=0.04, max_seconds=0.06, batch_seconds=0.12, batch_size=2)
            if "audio" in modalities
            else None,
            text=TextSourceConfig(tokens_per_sample=24, batch_size=4, microbatch_size=2)
            if "text" in modalities
            else None,
        ),
        optim=OptimSection(lr=0.3, eps=1.0, clip_norm=0.8),
        schedule=ScheduleSection(warmup_steps=1),
        ema=EmaSection(start=0.9, end=0.95, anneal_steps=6),
        precision=PrecisionSection(dtype="fp32"),
        parallel=parallel,
        training=TrainingSection(seed=0, max_steps=steps),
        checkpoint=CheckpointSection(every_steps=1000),
        health=HealthSection(every_steps=4),
        logging=LoggingSection(every_steps=1, tensorboard=False),
    )


def model_config(modalities: list[str], dropout: float) -> ModelConfig:
    """Prenet, CLS, reconstruction and added positions of images; learned ALiBi of audio; an encoder-only teacher of
    text, whose decoder outweighs blocks; targets that begin in any stage."""
    decoder = DecoderConfig(dim=16, groups=4, kernel=3, num_layers=2)
    image = ImageConfig(
        num_views=2,
        image_size=16,
        patch_size=4,
        prenet_depth=1,
        num_extra_tokens=1,
        extra_tokens_zero_init=False,  # the norm of a zero token multiplies rounding by a thousand
        mask=MaskConfig(prob=0.5, length=2, inverse=True),
        alibi=AlibiConfig(per_layer=True),
        decoder=DecoderConfig(dim=16, groups=4, kernel=3, num_layers=2, add_positions="masked"),
        target=TargetConfig(top_k=2),
        loss=LossConfig(weight=0.1, cls_weight=0.1, cls_rows=4, reconstruction_weight=0.1),
    )
    audio = AudioConfig(
        num_views=2,
        conv_layers=((16, 10, 5), (16, 3, 2), (16, 2, 2)),
        positions_width=9,
        positions_groups=4,
        positions_depth=3,
        alibi=AlibiConfig(scale=0.3),
        teacher_scope="context",
        mask=MaskConfig(kind="span", prob=0.5, length=3),
        decoder=decoder,
        target=TargetConfig(top_k=3),
        loss=LossConfig(weight=0.1),
    )
    text = TextConfig(
        num_views=2,
        vocab_size=50,
        max_positions=32,
        alibi=AlibiConfig(scale=0.2, per_head=False),
        dropout=dropout,
        teacher_scope="encoder",
        mask=MaskConfig(kind="random", prob=0.4),
        decoder=DecoderConfig(
            dim=48, groups=1, kernel=5, num_layers=3, projection_layers=2, residual=False, input_dropout=dropout
        ),
        target=TargetConfig(top_k=4, end_of_block=True),
        loss=LossConfig(weight=0.1),
    )
    return ModelConfig(
        encoder=EncoderConfig(
            depth=DEPTH,
            dim=48,
            num_heads=4,
            mlp_ratio=2.0,
            dropout=dropout,
            attention_dropout=dropout,
            post_mlp_dropout=dropout,
            input_dropout=dropout,
            layer_dropout=2 * dropout,
        ),
        image=image if "image" in modalities else None,
        audio=audio if "audio" in modalities else None,
        text=text if "text" in modalities else None,
    )


class SyntheticMixture:
    """Stands in for ``data_pipelines.mixture.Mixture``."""

    wait_seconds = 0.0

    def __init__(self, config: RunConfig, grid: Grid, rank: int) -> None:
        """Arguments as of ``pretrain.build.build_mixture``."""
        self._model = config.model
        self._dp = grid.dp_rank(rank), grid.dp_size
        self._positions = dict.fromkeys(config.model.modalities, 0)
        self.step_sizes = {name: config.units_per_step(name) for name in config.model.modalities}
        self._each = {name: config.microbatches(name, grid.dp_size) for name in config.model.modalities}

    def start_at(self, positions: Mapping[str, int]) -> None:
        """As ``Mixture.start_at``."""
        self._positions = dict(positions)

    def next_step(self) -> list[Batch]:
        """As ``Mixture.next_step``."""
        taken = dict.fromkeys(self._each, 0)
        batches = []
        for name in interleaved({name: number for name, (_, number) in self._each.items()}):
            size, number = self._each[name]
            start = self._positions[name] + (self._dp[0] * number + taken[name]) * size
            batches.append(make_batch(self._model, name, start, size))
            taken[name] += 1
        for name, size in self.step_sizes.items():
            self._positions[name] += size
        return batches

    def close(self) -> None:
        """Nothing to end."""


def make_batch(model: ModelConfig, modality: str, start: int, size: int) -> Batch:
    """Units ``start`` to ``start + size`` of a modality; one of audio is two recordings, of lengths of its own."""
    samples = [2 * start, 2 * start + 1] if modality == "audio" else list(range(start, start + size))
    lengths = {"image": [16] * size, "text": [24] * size, "audio": [640 + 40 * (start % 5), 640 + 80 * (start % 3)]}
    rows = [_sample(modality, sample, length) for sample, length in zip(samples, lengths[modality], strict=True)]
    longest = max(lengths[modality])
    if modality == "audio":
        rows = [torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows]
    masking = masking_of(model, modality)
    mask = masking.masks([sample + 100 for sample in samples], lengths[modality])
    num_tokens = torch.tensor([masking.num_tokens(length) for length in lengths[modality]])
    padding = torch.arange(mask.shape[2]) >= num_tokens[:, None]
    return Batch(
        modality=modality,
        position=start,
        source=torch.stack(rows),
        mask=mask,
        num_kept=kept_per_view(mask),
        padding=padding if padding.any() else None,
        sample=torch.tensor(samples),
        epoch=torch.zeros(len(samples), dtype=torch.long),
    )


def _sample(modality: str, sample: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(7 * sample + len(modality))
    if modality == "image":
        return torch.randn(3, length, length, generator=generator)
    if modality == "audio":
        return torch.randn(length, generator=generator)
    return torch.randint(4, 50, (length,), generator=generator)
