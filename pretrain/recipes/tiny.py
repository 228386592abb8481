"""Recipes small enough for two CPU cores. ``[demo]`` marks values found in the search that shared/demo.md records,
``[ours]`` those that were tried for this package; the rest is small for speed.
"""

from data_pipelines.config import AudioSourceConfig, DataConfig, ImageSourceConfig, TextSourceConfig
from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.sections import (
    AlibiConfig,
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    MaskConfig,
    TargetConfig,
)
from pretrain.config import RunConfig
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

_ENCODER = EncoderConfig(
    depth=4,  # [demo]
    dim=96,  # [demo]
    num_heads=4,  # [demo]
    init_std=0.06,  # [demo] .02 is small for a width of 96: -6 points of kNN
)


def image_tiny() -> RunConfig:
    """0.45 M parameters on 28 x 28 pages of handwritten digits (``d2v prepare digits``): the demo."""
    return RunConfig(
        name="image-tiny",
        model=ModelConfig(encoder=_ENCODER, image=_image_side()),
        data=DataConfig(image=_image_source(), num_workers=1),
        optim=OptimSection(lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05, clip_norm=4.0),  # [demo]
        schedule=ScheduleSection(warmup_steps=160),  # [demo] 10 % of the steps
        ema=EmaSection(start=0.97, end=0.995, anneal_steps=480),  # [demo] 30 % of the steps
        precision=PrecisionSection(dtype="bf16"),
        parallel=ParallelSection(zero_stage=1),
        training=TrainingSection(max_steps=1_600, global_batch_size=32, seed=0),  # [demo]
        checkpoint=CheckpointSection(every_steps=500, keep=2),
        health=HealthSection(every_steps=100, after_steps=500),
        logging=LoggingSection(every_steps=50),
    )


def audio_tiny() -> RunConfig:
    """0.6 M parameters on windows of 1 to 1.5 s of speech.

    Needs speech shards (``d2v prepare speech``) at ``--data.path``. A step has 2 batches of at most 6 s: 1 or 2 ranks.
    """
    return _small(
        "audio-tiny",
        ModelConfig(encoder=_ENCODER, audio=_audio_side()),
        DataConfig(audio=_audio_source(), num_workers=1),
        TrainingSection(max_steps=1_000, global_batch_size=2, seed=0),
    )


def text_tiny() -> RunConfig:
    """0.8 M parameters on blocks of 64 tokens of a vocabulary of 2,000.

    Needs text shards (``d2v prepare text --vocab-size 2000 --tokens-per-sample 64``) at ``--data.path``. In the first
    100 steps the loss falls because the model learns what places look like, after 300 what stands there.
    """
    return _small(
        "text-tiny",
        ModelConfig(encoder=_ENCODER, text=_text_side()),
        DataConfig(text=_text_source(), num_workers=1),
        TrainingSection(max_steps=1_000, global_batch_size=16, seed=0),
    )


def multimodal_tiny() -> RunConfig:
    """One encoder for images, speech and text: 1.1 M parameters.

    Needs the shards of the three tiny recipes at ``--data.image.path``, ``--data.audio.path``, ``--data.text.path``.
    On two ranks each has 2 image, 1 speech and 1 text microbatches per step.
    """
    return _small(
        "multimodal-tiny",
        ModelConfig(encoder=_ENCODER, image=_image_side(), audio=_audio_side(), text=_text_side()),
        DataConfig(
            image=_image_source(batch_size=16, microbatch_size=4),
            audio=_audio_source(batch_size=2),
            text=_text_source(batch_size=8, microbatch_size=4),
            num_workers=1,
        ),
        TrainingSection(max_steps=1_000, seed=0),
    )


def _small(name: str, model: ModelConfig, data: DataConfig, training: TrainingSection) -> RunConfig:
    """What the recipes beside the demo share."""
    return RunConfig(
        name=name,
        model=model,
        data=data,
        # [ours] at 3e-3, at 2e-3 with a warm-up of 10 steps, or under a teacher of decay .99 speech collapses: the
        # features are all but constant, and the loss falls only for the edges, which stand out then
        optim=OptimSection(lr=1.5e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, clip_norm=4.0),
        schedule=ScheduleSection(warmup_steps=40),
        ema=EmaSection(start=0.998, end=0.9995, anneal_steps=300),
        precision=PrecisionSection(dtype="bf16"),
        parallel=ParallelSection(zero_stage=1),
        training=training,
        checkpoint=CheckpointSection(every_steps=500, keep=2),
        health=HealthSection(every_steps=100, after_steps=500),
        logging=LoggingSection(every_steps=50),
    )


def _image_side() -> ImageConfig:
    return ImageConfig(
        num_views=4,  # [demo]
        image_size=28,  # [demo]
        patch_size=4,  # [demo]
        in_channels=1,
        prenet_depth=0,  # [demo]
        num_extra_tokens=1,  # [demo]
        extra_tokens_zero_init=False,
        mask=MaskConfig(prob=0.7, adjust=0.07, length=3, inverse=True),  # [demo] 14 of 49 patches stay
        decoder=DecoderConfig(dim=64, groups=4, kernel=3, num_layers=3),  # [demo]
        target=TargetConfig(top_k=4, layer_norm=True),  # [demo]
        loss=LossConfig(cls_weight=0.0),  # [demo] the summed CLS term is 70 % of the early loss at this size
    )


def _audio_side() -> AudioConfig:
    return AudioConfig(
        num_views=4,
        # [ours] 20 ms a frame as the large ones, but windows of 87 ms that overlap: else 100 steps teach nothing
        conv_layers=((32, 10, 5), (32, 8, 4), (64, 8, 4), (64, 16, 4)),
        positions_width=15,
        positions_groups=4,
        positions_depth=3,
        alibi=AlibiConfig(),
        teacher_scope="context",
        mask=MaskConfig(kind="block", prob=0.5, adjust=0.05, length=2),  # [ours]
        # [ours] with one linear the first predictions vary so much that the encoder learns to give a constant
        decoder=DecoderConfig(dim=64, groups=4, kernel=7, num_layers=3, projection_layers=3),
        target=TargetConfig(top_k=4),
    )


def _text_side() -> TextConfig:
    return TextConfig(
        num_views=4,
        vocab_size=2_000,
        max_positions=64,
        teacher_scope="encoder",
        mask=MaskConfig(kind="random", prob=0.48, length=1),
        decoder=DecoderConfig(dim=96, groups=1, kernel=5, num_layers=3, residual=False, projection_layers=2),
        target=TargetConfig(top_k=4),
    )


def _image_source(*, batch_size: int | None = None, microbatch_size: int | None = None) -> ImageSourceConfig:
    return ImageSourceConfig(
        batch_size=batch_size,
        microbatch_size=microbatch_size,
        size=28,
        channels=1,
        crop=False,  # [demo] no augmentation
        flip_prob=0.0,
        mean=(0.25,),  # [demo]
        std=(0.019,),  # [demo] patches 13 times stronger than usual, or the positions dominate the target
    )


def _audio_source(*, batch_size: int | None = None) -> AudioSourceConfig:
    return AudioSourceConfig(batch_size=batch_size, min_seconds=1.0, max_seconds=1.5, batch_seconds=6.0)


def _text_source(*, batch_size: int | None = None, microbatch_size: int | None = None) -> TextSourceConfig:
    return TextSourceConfig(batch_size=batch_size, microbatch_size=microbatch_size, tokens_per_sample=64)
