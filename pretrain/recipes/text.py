"""Text recipes of data2vec 2.0. ``[yaml]`` marks values of fairseq ``examples/data2vec/config/v2``
(``{base,large}_text_only_task.yaml``, ``large_text_only_task_pgrp_1M.yaml``), ``[fairseq]`` those that its code gives
where a YAML is silent, ``[ours]`` our own.

All read blocks of 512 tokens of GPT-2's BPE under fairseq's dictionary. Another vocabulary needs
``--model.text.vocab-size``.
"""

from data_pipelines.config import DataConfig, TextSourceConfig
from model.config import ModelConfig, TextConfig
from model.sections import DecoderConfig, LossConfig, MaskConfig, TargetConfig
from pretrain.config import RunConfig
from pretrain.recipes.sequences import sequence_encoder, sequence_run
from pretrain.sections import EmaSection

_DATA = DataConfig(
    text=TextSourceConfig(tokens_per_sample=512),  # [yaml] task.tokens_per_sample
    num_workers=1,  # [fairseq] dataset.num_workers
)
_EMA = EmaSection(start=0.9999, end=0.99999, anneal_steps=100_000)  # [yaml]
_CLIP_NORM = 1.0  # [yaml] optimization.clip_norm
_WARMUP_STEPS = 4_000  # [yaml]
_SAVE_EVERY_STEPS = 50_000  # [yaml] save_interval_updates
_LARGE_TARGET = TargetConfig(
    top_k=24,  # [yaml]
    instance_norm_layer=False,  # [yaml]
    layer_norm_layer=True,  # [yaml] layer_norm_target_layer
    instance_norm=True,  # [yaml] instance_norm_targets, after averaging
)


def text_base() -> RunConfig:
    """153 M parameters (12 shared blocks of width 768), made for books and Wikipedia.

    A step has 64 blocks (16 GPUs x 4). Needs text shards (``d2v prepare text``) at ``--data.path``.
    """
    return sequence_run(
        "text-base",
        model=ModelConfig(
            encoder=sequence_encoder(
                depth=12,  # [yaml]
                dim=768,  # [yaml] embed_dim
                num_heads=12,  # [fairseq] default
                layer_dropout=0.0,  # [yaml] layerdrop
            ),
            text=_side(
                mask_prob=0.48,  # [yaml]
                target=TargetConfig(top_k=12, instance_norm_layer=True),  # [yaml]
                beta=0.0,  # [yaml] loss_beta
            ),
        ),
        data=_DATA,
        lr=2e-4,  # [yaml]
        clip_norm=_CLIP_NORM,
        warmup_steps=_WARMUP_STEPS,
        ema=_EMA,
        max_steps=1_000_000,  # [yaml] optimization.max_update
        global_batch_size=16 * 4,  # [yaml] distributed_world_size x dataset.batch_size
        save_every_steps=_SAVE_EVERY_STEPS,
    )


def text_large() -> RunConfig:
    """385 M parameters (24 shared blocks of width 1024), 600,000 steps.

    A step has 64 blocks (32 GPUs x 2). Needs text shards (``d2v prepare text``) at ``--data.path``.
    """
    return _large(
        "text-large",
        beta=0.0,  # [yaml]
        max_steps=600_000,  # [yaml]
    )


def text_large_1m() -> RunConfig:
    """text-large over 1,000,000 steps with smooth L1 (``large_text_only_task_pgrp_1M.yaml``).

    The YAML gives the decoder a parameter group of its own with the same settings as all others, and its
    ``optimization.lr`` 3e-4 is not read: one group at 1e-4 is the same.
    """
    return _large(
        "text-large-1m",
        beta=4.0,  # [yaml]
        max_steps=1_000_000,  # [yaml]
    )


def _large(name: str, *, beta: float, max_steps: int) -> RunConfig:
    return sequence_run(
        name,
        model=ModelConfig(
            encoder=sequence_encoder(depth=24, dim=1024, num_heads=16, layer_dropout=0.0),  # [yaml]
            text=_side(mask_prob=0.5, target=_LARGE_TARGET, beta=beta),  # [yaml]
        ),
        data=_DATA,
        lr=1e-4,  # [yaml] lr_float of every group
        clip_norm=_CLIP_NORM,
        warmup_steps=_WARMUP_STEPS,
        ema=_EMA,
        max_steps=max_steps,
        global_batch_size=32 * 2,  # [yaml]
        save_every_steps=_SAVE_EVERY_STEPS,
    )


def _side(*, mask_prob: float, target: TargetConfig, beta: float) -> TextConfig:
    return TextConfig(
        vocab_size=50_265,  # [fairseq] RoBERTa's dictionary: 50,260 lines, 4 specials, <mask>
        max_positions=512,  # [fairseq] max_source_positions
        dropout=0.1,  # [fairseq] of the embedded tokens
        num_views=8,  # [yaml] clone_batch
        prenet_depth=0,  # [yaml]
        num_extra_tokens=0,  # [fairseq]
        alibi=None,  # [fairseq] use_alibi_encoder
        teacher_scope="encoder",  # [yaml] ema_encoder_only
        mask=MaskConfig(kind="random", prob=mask_prob, length=1),  # [yaml] mask_length 1
        decoder=DecoderConfig(
            dim=768,  # [yaml]
            groups=1,  # [yaml]
            kernel=9,  # [yaml]
            num_layers=5,  # [yaml]
            residual=False,  # [yaml]
            projection_layers=2,  # [yaml]
            projection_ratio=2.0,  # [yaml]
            noise_std=0.01,  # [yaml] mask_noise_std
            input_dropout=0.1,  # [yaml]
        ),
        target=target,
        loss=LossConfig(beta=beta, scale=1.0),  # [yaml] loss_scale
    )
