"""Recipes larger than those of the paper. None has been trained: every value is ours, or goes on from the largest
published recipe of the modality, ``image-huge14`` or ``audio-large``, where its provenance is.

Widths are heads of 64 or 128 channels, for which attention kernels are fastest, and their number divides by 8, so that
tensor parallelism can fill a machine; depths divide by 2, 3, 4 and 6 (of 3B by 2, 4, 5 and 8) for the stages of a
pipeline. No block is a prenet: those all stay in the first stage.

Learning rates fall with the width, from 4e-4 at a width of 1280, and stay below what a larger batch would allow:
post-LN networks of this depth are where warm-up matters, so both it and the length in steps are those of huge14, and
larger batches mean more images instead of fewer steps. The teacher freezes after 60 % of the steps, as huge14's does.

The sections ``parallel`` start on any number of processes; ``layouts`` has those for the GPUs they are meant for.
"""

import dataclasses

from model.config import AudioConfig, ImageConfig, ModelConfig
from model.sections import EncoderConfig
from pretrain.config import RunConfig
from pretrain.recipes.audio import audio_large
from pretrain.recipes.image import image_huge14
from pretrain.sections import ParallelSection


def image_1b() -> RunConfig:
    """1.0 B parameters: 36 shared blocks of width 1536 on patches of 14, batch 512 (64 GPUs x 8)."""
    return _image(
        "image-1b",
        depth=36,
        dim=1536,
        num_heads=24,  # of 64 channels
        top_k=27,  # 3/4 of the blocks, as huge14's 24 of 32
        lr=3.3e-4,  # 4e-4 * 1280 / 1536
        global_batch_size=512,
        parallel=ParallelSection(zero_stage=1),
    )


def image_3b() -> RunConfig:
    """3.2 B parameters: 40 shared blocks of width 2560 on patches of 14, batch 1,024 (128 GPUs x 8)."""
    return _image(
        "image-3b",
        depth=40,
        dim=2560,
        num_heads=40,  # of 64 channels
        top_k=30,  # 3/4 of the blocks
        lr=2e-4,  # 4e-4 * 1280 / 2560
        global_batch_size=1024,
        parallel=ParallelSection(zero_stage=2, recompute=True),
    )


def image_7b() -> RunConfig:
    """7.3 B parameters: 36 shared blocks of width 4096 on patches of 14, batch 2,048 (256 GPUs x 8)."""
    return _image(
        "image-7b",
        depth=36,
        dim=4096,
        num_heads=32,  # of 128 channels
        top_k=27,  # 3/4 of the blocks
        lr=1.25e-4,  # 4e-4 * 1280 / 4096
        global_batch_size=2048,
        parallel=ParallelSection(zero_stage=3, recompute=True),
    )


def audio_1b() -> RunConfig:
    """1.0 B parameters: 36 shared blocks of width 1536.

    A step has 96 batches of at most 20 s, twice audio-large's. Needs speech shards (``d2v prepare speech``) at
    ``--data.path``.
    """
    base = audio_large()
    assert base.model.audio is not None
    side: AudioConfig = dataclasses.replace(
        base.model.audio,
        prenet_depth=0,  # audio-large's 8 + 16 blocks as shared ones
        target=dataclasses.replace(base.model.audio.target, top_k=24),  # 2/3 of the blocks, as its 16 of 24
    )
    encoder = dataclasses.replace(base.model.encoder, depth=36, dim=1536, num_heads=24)
    return dataclasses.replace(
        base,
        name="audio-1b",
        model=ModelConfig(encoder=encoder, audio=side),
        optim=dataclasses.replace(base.optim, lr=2.7e-4),  # 4e-4 * 1024 / 1536
        parallel=ParallelSection(zero_stage=1),
        training=dataclasses.replace(base.training, global_batch_size=96),
    )


def _image(
    name: str,
    *,
    depth: int,
    dim: int,
    num_heads: int,
    top_k: int,
    lr: float,
    global_batch_size: int,
    parallel: ParallelSection,
) -> RunConfig:
    base = image_huge14()
    assert base.model.image is not None
    # Masks, views and the decoder stay: the decoder runs whole in the last stage, on every tensor-parallel rank.
    side: ImageConfig = dataclasses.replace(
        base.model.image, target=dataclasses.replace(base.model.image.target, top_k=top_k)
    )
    return dataclasses.replace(
        base,
        name=name,
        model=ModelConfig(
            encoder=EncoderConfig(depth=depth, dim=dim, num_heads=num_heads, norm_eps=base.model.encoder.norm_eps),
            image=side,
        ),
        optim=dataclasses.replace(base.optim, lr=lr),
        parallel=parallel,
        training=dataclasses.replace(base.training, global_batch_size=global_batch_size),
    )
