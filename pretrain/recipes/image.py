"""Image recipes of data2vec 2.0. ``[yaml]`` marks values of fairseq ``examples/data2vec/config/v2``
(``{base,large,huge,huge14}_images_only_task.yaml``), ``[paper]`` those of arXiv 2212.07525, ``[ours]`` our own.
"""

from data_pipelines.config import DataConfig, ImageSourceConfig
from model.config import ImageConfig, ModelConfig
from model.sections import DecoderConfig, EncoderConfig, LossConfig, MaskConfig, TargetConfig
from pretrain.config import RunConfig
from pretrain.sections import (
    CheckpointSection,
    EmaSection,
    OptimSection,
    PrecisionSection,
    ScheduleSection,
    TrainingSection,
)

_DATA = DataConfig(
    image=ImageSourceConfig(
        size=224,  # [yaml] task.input_size / modalities.image.input_size default
        crop_scale=(0.2, 1.0),  # [fairseq mae_image_dataset.py] RandomResizedCrop(scale=(0.2, 1.0))
        flip_prob=0.5,  # [fairseq mae_image_dataset.py] RandomHorizontalFlip
        mean=(0.485, 0.456, 0.406),  # [fairseq mae_image_dataset.py] ImageNet statistics
        std=(0.229, 0.224, 0.225),
    ),
    num_workers=10,  # [yaml] dataset.num_workers
)
_CHECKPOINT = CheckpointSection(
    every_steps=25_000,  # [yaml] save_interval_updates
    keep=3,  # [ours]
)


def image_base() -> RunConfig:
    """ViT-B/16: 2 prenet + 10 shared blocks, 75 epochs of ImageNet-1k at batch 256 (16 GPUs x 16)."""
    return RunConfig(
        name="image-base",
        model=ModelConfig(
            encoder=EncoderConfig(depth=10, dim=768, num_heads=12, norm_eps=1e-6),  # [yaml]
            image=ImageConfig(
                num_views=16,  # [yaml] clone_batch
                prenet_depth=2,  # [yaml]
                num_extra_tokens=1,  # [yaml]
                extra_tokens_zero_init=False,  # [yaml] init_extra_token_zero
                mask=MaskConfig(prob=0.8, adjust=0.07, length=3, inverse=True),  # [yaml]
                decoder=DecoderConfig(dim=768, groups=16, kernel=3, num_layers=6),  # [yaml]
                target=TargetConfig(top_k=10, layer_norm=True),  # [yaml] instance norm per layer, then layer norm
                loss=LossConfig(cls_weight=0.01, cls_rows=16 * 16),  # [yaml] cls_loss; rows = batch_size x clone_batch
            ),
        ),
        data=_DATA,
        optim=OptimSection(
            lr=1e-3,  # [yaml] optimization.lr
            betas=(0.9, 0.95),  # [yaml]
            eps=1e-8,  # [fairseq] Adam's default, the YAML is silent
            weight_decay=0.05,  # [yaml], on every parameter (facts, trap 1)
            clip_norm=4.0,  # [yaml] optimization.clip_norm
        ),
        schedule=ScheduleSection(warmup_steps=50_040),  # [yaml]
        ema=EmaSection(start=0.9998, end=0.99999, anneal_steps=100_000),  # [yaml]
        precision=PrecisionSection(dtype="bf16"),  # [ours] the YAML trains in fp16 with dynamic loss scaling
        training=TrainingSection(
            max_steps=375_300,  # [yaml] optimization.max_update
            global_batch_size=16 * 16,  # [yaml] dataset.batch_size x distributed_world_size
            seed=1,  # [fairseq] common.seed
        ),
        checkpoint=_CHECKPOINT,
    )


def image_large() -> RunConfig:
    """ViT-L/16: 24 shared blocks, 37.5 epochs at batch 128 (16 GPUs x 8)."""
    return RunConfig(
        name="image-large",
        model=ModelConfig(
            encoder=EncoderConfig(depth=24, dim=1024, num_heads=16, norm_eps=1e-6),  # [yaml]
            image=ImageConfig(
                num_views=16,  # [yaml]
                prenet_depth=0,  # [yaml]
                num_extra_tokens=1,  # [yaml]
                extra_tokens_zero_init=False,  # [yaml] init_extra_token_zero
                mask=MaskConfig(prob=0.75, adjust=0.1, length=3, inverse=True),  # [yaml]
                decoder=DecoderConfig(dim=1024, groups=16, kernel=5, num_layers=3),  # [yaml]
                target=TargetConfig(top_k=18, layer_norm=True),  # [yaml]
                loss=LossConfig(cls_weight=0.01, cls_rows=8 * 16),  # [yaml]
            ),
        ),
        data=_DATA,
        optim=OptimSection(lr=4e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05, clip_norm=4.0),  # [yaml]
        schedule=ScheduleSection(warmup_steps=50_040),  # [yaml]
        ema=EmaSection(start=0.9998, end=0.99999, anneal_steps=150_000),  # [yaml]; [paper] end 1.0 at 500k
        precision=PrecisionSection(dtype="bf16"),  # [ours]
        training=TrainingSection(max_steps=375_300, global_batch_size=16 * 8, seed=1),  # [yaml]
        checkpoint=_CHECKPOINT,
    )


def image_huge16() -> RunConfig:
    """ViT-H/16: 32 shared blocks, 37.5 epochs at batch 128 (16 GPUs x 8)."""
    return RunConfig(
        name="image-huge16",
        model=_huge(patch_size=16),
        data=_DATA,
        optim=OptimSection(lr=4e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05, clip_norm=4.0),  # [yaml]
        schedule=ScheduleSection(warmup_steps=50_040),  # [yaml]
        ema=EmaSection(start=0.9998, end=0.99995, anneal_steps=150_000),  # [yaml]
        precision=PrecisionSection(dtype="bf16"),  # [ours]
        training=TrainingSection(max_steps=375_300, global_batch_size=16 * 8, seed=1),  # [yaml]
        checkpoint=_CHECKPOINT,
    )


def image_huge14() -> RunConfig:
    """ViT-H/14: 32 shared blocks, 99.9 epochs at batch 256 (32 GPUs x 8); the teacher freezes at step 300,000."""
    return RunConfig(
        name="image-huge14",
        model=_huge(patch_size=14),
        data=_DATA,
        optim=OptimSection(lr=4e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05, clip_norm=4.0),  # [yaml]
        schedule=ScheduleSection(warmup_steps=50_040),  # [yaml]
        ema=EmaSection(start=0.9998, end=1.0, anneal_steps=300_000),  # [yaml]
        precision=PrecisionSection(dtype="bf16"),  # [ours]
        training=TrainingSection(max_steps=500_000, global_batch_size=32 * 8, seed=1),  # [yaml]
        checkpoint=_CHECKPOINT,
    )


def _huge(patch_size: int) -> ModelConfig:
    return ModelConfig(
        encoder=EncoderConfig(depth=32, dim=1280, num_heads=16, norm_eps=1e-6),  # [yaml]
        image=ImageConfig(
            num_views=16,  # [yaml]
            patch_size=patch_size,  # [yaml]
            prenet_depth=0,  # [yaml]
            num_extra_tokens=1,  # [yaml]
            extra_tokens_zero_init=False,  # [yaml] init_extra_token_zero
            mask=MaskConfig(prob=0.75, adjust=0.1, length=3, inverse=True),  # [yaml]
            decoder=DecoderConfig(dim=1024, groups=16, kernel=5, num_layers=3),  # [yaml]
            target=TargetConfig(top_k=24, layer_norm=True),  # [yaml]; [paper] 32
            loss=LossConfig(cls_weight=0.01, cls_rows=8 * 16),  # [yaml]
        ),
    )
