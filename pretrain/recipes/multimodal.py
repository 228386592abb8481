"""One encoder for images, speech and text. All values here are our own and untried at this size; what is not named is
that of the modality's own base recipe, where its provenance is.
"""

import dataclasses

from data_pipelines.config import DataConfig
from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.sections import EncoderConfig
from pretrain.config import RunConfig
from pretrain.recipes.audio import audio_base
from pretrain.recipes.image import image_base
from pretrain.recipes.text import text_base
from pretrain.sections import (
    EmaSection,
    HealthSection,
    OptimSection,
    PrecisionSection,
    ScheduleSection,
    TrainingSection,
)


def multimodal_base() -> RunConfig:
    """165 M parameters (12 shared blocks of width 768), of which text's embedding is 39 M and its decoder 29 M.

    A step has 256 images, 8 batches of at most 62.5 s of speech and 64 blocks of text: on 8 processes 2, 1 and 1
    microbatches each. Needs ``--data.image.path``, ``--data.audio.path`` and ``--data.text.path``.

    Weights stay at 1: as the three recipes scale their losses, at the start the gradients that images, speech and text
    give the shared blocks are of one size (norms 34, 56 and 23 on 2 to 4 samples with 4 views).
    """
    return RunConfig(
        name="multimodal-base",
        model=ModelConfig(
            encoder=EncoderConfig(depth=12, dim=768, num_heads=12, norm_eps=1e-5),  # no dropout, as images have none
            image=_image(),
            audio=_audio(),
            text=_text(),
        ),
        data=_data(),
        optim=OptimSection(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, clip_norm=4.0),
        schedule=ScheduleSection(warmup_steps=20_000),
        ema=EmaSection(start=0.9997, end=0.99999, anneal_steps=100_000),  # between those of the three
        precision=PrecisionSection(dtype="bf16"),
        training=TrainingSection(max_steps=400_000, seed=1),
        health=HealthSection(after_steps=5_000),
    )


def _image() -> ImageConfig:
    side = image_base().model.image
    assert side is not None
    # its 2 prenet blocks become shared ones, which all modalities have 12 of
    return dataclasses.replace(side, prenet_depth=0, target=dataclasses.replace(side.target, top_k=10))


def _audio() -> AudioConfig:
    side = audio_base().model.audio
    assert side is not None
    return side


def _text() -> TextConfig:
    side = text_base().model.text
    assert side is not None
    return side


def _data() -> DataConfig:
    image, audio, text = image_base().data.image, audio_base().data.audio, text_base().data.text
    assert image is not None and audio is not None and text is not None
    return DataConfig(
        image=dataclasses.replace(image, batch_size=256, microbatch_size=16),
        audio=dataclasses.replace(audio, batch_size=8),
        text=dataclasses.replace(text, batch_size=64, microbatch_size=8),
        num_workers=4,
    )
