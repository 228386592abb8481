"""What the published speech and text configurations have in common; marks as in ``audio`` and ``text``."""

from data_pipelines.config import DataConfig
from model.config import ModelConfig
from model.sections import EncoderConfig
from pretrain.config import RunConfig
from pretrain.sections import (
    CheckpointSection,
    EmaSection,
    HealthSection,
    LoggingSection,
    OptimSection,
    PrecisionSection,
    ScheduleSection,
    TrainingSection,
)


def sequence_run(
    name: str,
    *,
    model: ModelConfig,
    data: DataConfig,
    lr: float,
    clip_norm: float,
    warmup_steps: int,
    ema: EmaSection,
    max_steps: int,
    global_batch_size: int,
    save_every_steps: int,
) -> RunConfig:
    """A complete run of what differs between the recipes."""
    return RunConfig(
        name=name,
        model=model,
        data=data,
        optim=OptimSection(
            lr=lr,
            betas=(0.9, 0.98),  # [yaml]
            eps=1e-6,  # [yaml]
            weight_decay=0.01,  # [yaml], on every parameter (facts, trap 1)
            clip_norm=clip_norm,
        ),
        schedule=ScheduleSection(warmup_steps=warmup_steps),
        ema=ema,
        precision=PrecisionSection(dtype="bf16"),  # [ours] the YAMLs train in fp16 with dynamic loss scaling
        training=TrainingSection(
            max_steps=max_steps,
            global_batch_size=global_batch_size,
            seed=1,  # [fairseq] common.seed
        ),
        checkpoint=CheckpointSection(
            every_steps=save_every_steps,
            keep=3,  # [ours] the YAMLs keep 1: whoever finds that one damaged starts anew
        ),
        health=HealthSection(
            after_steps=5_000,  # [fairseq data2vec2.py]
            min_target_spread=0.1,  # [fairseq] min_target_var
            min_prediction_spread=0.01,  # [fairseq] min_pred_var
            on_collapse="stop",  # [fairseq data2vec2.py] raises an exception
        ),
        logging=LoggingSection(every_steps=200),  # [yaml] common.log_interval
    )


def sequence_encoder(*, depth: int, dim: int, num_heads: int, layer_dropout: float) -> EncoderConfig:
    """Shared blocks with dropout, which images have none of."""
    return EncoderConfig(
        depth=depth,
        dim=dim,
        num_heads=num_heads,
        mlp_ratio=4.0,  # [fairseq]
        norm_eps=1e-5,  # [yaml]
        dropout=0.1,  # [fairseq] encoder_dropout
        attention_dropout=0.1,  # [fairseq]
        activation_dropout=0.0,  # [fairseq]
        post_mlp_dropout=0.1,  # [fairseq] post_mlp_drop
        input_dropout=0.0,  # [fairseq] dropout_input
        layer_dropout=layer_dropout,
    )
