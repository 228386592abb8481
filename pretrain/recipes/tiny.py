"""Recipes small enough for two CPU cores. ``[demo]`` marks values found in the search that shared/demo.md records."""

from data_pipelines.config import DataConfig, ImageSourceConfig
from model.config import ImageConfig, ModelConfig
from model.sections import DecoderConfig, EncoderConfig, LossConfig, MaskConfig, TargetConfig
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


def image_tiny() -> RunConfig:
    """0.45 M parameters on 28 x 28 pages of handwritten digits (``d2v prepare digits``): the demo."""
    return RunConfig(
        name="image-tiny",
        model=ModelConfig(
            encoder=EncoderConfig(
                depth=4,  # [demo]
                dim=96,  # [demo]
                num_heads=4,  # [demo]
                init_std=0.06,  # [demo] .02 is small for a width of 96: -6 points of kNN
            ),
            image=ImageConfig(
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
            ),
        ),
        data=DataConfig(
            image=ImageSourceConfig(
                size=28,
                channels=1,
                crop=False,  # [demo] no augmentation
                flip_prob=0.0,
                mean=(0.25,),  # [demo]
                std=(0.019,),  # [demo] patches 13 times stronger than usual, or the positions dominate the target
            ),
            num_workers=1,
        ),
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
