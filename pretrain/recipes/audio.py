"""Speech recipes of data2vec 2.0. ``[yaml]`` marks values of fairseq ``examples/data2vec/config/v2``
(``{base,large}_audio_only_task.yaml``), ``[fairseq]`` those that its code gives where a YAML is silent,
``[paper]`` those of arXiv 2212.07525, ``[ours]`` our own.
"""

from data_pipelines.config import AudioSourceConfig, DataConfig
from model.config import AudioConfig, ModelConfig
from model.sections import AlibiConfig, DecoderConfig, LossConfig, MaskConfig, TargetConfig
from pretrain.config import RunConfig
from pretrain.recipes.sequences import sequence_encoder, sequence_run
from pretrain.sections import EmaSection

_SAVE_EVERY_STEPS = 25_000  # [yaml] save_interval_updates


def audio_base() -> RunConfig:
    """94 M parameters (12 shared blocks of width 768), made for LibriSpeech, 960 h.

    A step has 8 batches of at most 62.5 s (8 GPUs, one each): 1, 2, 4 or 8 ranks. Needs speech shards
    (``d2v prepare speech``) at ``--data.path``.
    """
    return sequence_run(
        "audio-base",
        model=ModelConfig(
            encoder=sequence_encoder(
                depth=12,  # [yaml]
                dim=768,  # [yaml] embed_dim
                num_heads=12,  # [fairseq] default
                layer_dropout=0.05,  # [yaml] layerdrop
            ),
            audio=_side(
                num_views=8,  # [yaml] clone_batch
                prenet_depth=0,  # [yaml]
                prenet_layer_dropout=0.05,  # [yaml] prenet_layerdrop
                mask=MaskConfig(kind="block", prob=0.5, adjust=0.05, length=5, inverse=False),  # [yaml]
                decoder_dim=384,  # [yaml]
                top_k=8,  # [yaml]; [paper] 8
            ),
        ),
        data=_data(
            batch_seconds=62.5,  # [yaml] dataset.max_tokens, 1,000,000 samples
            num_workers=6,  # [yaml] dataset.num_workers
        ),
        lr=7.5e-4,  # [yaml] optimization.lr
        clip_norm=0.0,  # [fairseq] optimization.clip_norm's default: the YAML does not clip
        warmup_steps=8_000,  # [yaml]
        ema=EmaSection(start=0.999, end=0.99999, anneal_steps=75_000),  # [yaml]
        max_steps=400_000,  # [yaml] optimization.max_update
        global_batch_size=8,  # [yaml] distributed_world_size: one batch of max_tokens per GPU
        save_every_steps=_SAVE_EVERY_STEPS,
    )


def audio_large() -> RunConfig:
    """315 M parameters (8 prenet + 16 shared blocks of width 1024), made for Libri-light without its silence.

    A step has 48 batches of at most 20 s (48 GPUs, one each). The teacher freezes at step 300,000. Needs speech
    shards (``d2v prepare speech``) at ``--data.path``.
    """
    return sequence_run(
        "audio-large",
        model=ModelConfig(
            encoder=sequence_encoder(depth=16, dim=1024, num_heads=16, layer_dropout=0.0),  # [yaml]
            audio=_side(
                num_views=12,  # [yaml]
                prenet_depth=8,  # [yaml]
                prenet_layer_dropout=0.0,  # [yaml]
                mask=MaskConfig(kind="block", prob=0.55, adjust=0.1, length=5, inverse=False),  # [yaml]
                decoder_dim=768,  # [yaml]; [paper] 384
                top_k=16,  # [yaml]; [paper] 8 to 10
            ),
        ),
        data=_data(batch_seconds=20.0, num_workers=8),  # [yaml] max_tokens is 320,000 samples
        lr=4e-4,  # [yaml]
        clip_norm=1.0,  # [yaml]
        warmup_steps=10_000,  # [yaml]
        ema=EmaSection(start=0.9997, end=1.0, anneal_steps=300_000),  # [yaml]
        max_steps=600_000,  # [yaml]
        global_batch_size=48,  # [yaml]
        save_every_steps=_SAVE_EVERY_STEPS,
    )


def _side(
    *, num_views: int, prenet_depth: int, prenet_layer_dropout: float, mask: MaskConfig, decoder_dim: int, top_k: int
) -> AudioConfig:
    return AudioConfig(
        num_views=num_views,
        prenet_depth=prenet_depth,
        prenet_dropout=0.1,  # [yaml]
        prenet_layer_dropout=prenet_layer_dropout,
        num_extra_tokens=0,  # [fairseq]
        conv_layers=((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2),  # [yaml] feature_encoder_spec
        positions_width=95,  # [yaml] conv_pos_width
        positions_groups=16,  # [yaml] conv_pos_groups
        positions_depth=5,  # [yaml] conv_pos_depth
        alibi=AlibiConfig(
            scale=1.0,  # [fairseq] alibi_scale
            learned=True,  # [yaml] learned_alibi_scale
            per_head=True,  # [yaml] learned_alibi_scale_per_head
            per_layer=False,  # [fairseq]
        ),
        teacher_scope="context",  # [yaml] ema_encoder_only and ema_local_encoder are both false
        mask=mask,
        decoder=DecoderConfig(
            dim=decoder_dim,
            groups=16,  # [yaml]
            kernel=7,  # [yaml]
            num_layers=4,  # [yaml]
            residual=True,  # [fairseq]
            projection_layers=1,  # [fairseq]
            noise_std=0.01,  # [yaml] mask_noise_std
            input_dropout=0.1,  # [yaml]
        ),
        target=TargetConfig(top_k=top_k, instance_norm_layer=True),  # [yaml] no norm after averaging
        loss=LossConfig(beta=0.0, scale=None),  # [yaml] squared error / sqrt(D)
    )


def _data(*, batch_seconds: float, num_workers: int) -> DataConfig:
    return DataConfig(
        audio=AudioSourceConfig(
            sample_rate=16_000,  # [fairseq] task.sample_rate
            min_seconds=2.0,  # [yaml] task.min_sample_size, 32,000 samples
            max_seconds=20.0,  # [yaml] task.max_sample_size, 320,000 samples
            batch_seconds=batch_seconds,
            crop_to_shortest=True,  # [fairseq raw_audio_dataset.py] collater without padding
            normalize=True,  # [yaml] task.normalize
        ),
        num_workers=num_workers,
    )
