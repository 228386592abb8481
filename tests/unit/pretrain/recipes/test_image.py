"""The image recipes, field by field (data2vec2-facts.md 2.2), and what follows from the fields."""

from typing import Any

import pytest

from model import ema
from pretrain.recipes.registry import recipe
from tests.unit.pretrain.recipes.fields import NO_OTHER_MODALITY, OWN_SOURCE, differing, under
from tests.unit.pretrain.recipes.reference import ENCODER, RUN, SIDE

SIDE_OF_ALL: dict[str, Any] = SIDE | {
    "num_views": 16,
    "image_size": 224,
    "in_channels": 3,
    "prenet_dropout": 0.0,
    "prenet_layer_dropout": 0.0,
    "num_extra_tokens": 1,
    "extra_tokens_zero_init": False,
    "alibi": None,
    "teacher_scope": "frontend",
    "mask.kind": "block",
    "mask.length": 3,
    "mask.inverse": True,
    "decoder.groups": 16,
    "decoder.residual": True,
    "decoder.projection_layers": 1,
    "decoder.projection_ratio": 2.0,
    "decoder.input_dropout": 0.0,
    "target.instance_norm_layer": True,
    "target.layer_norm_layer": False,
    "target.layer_norm": True,
    "target.instance_norm": False,
    "loss.beta": 0.0,
    "loss.scale": None,
    "loss.cls_weight": 0.01,
}
SOURCE: dict[str, Any] = OWN_SOURCE | {
    "size": 224,
    "channels": 3,
    "crop": True,
    "crop_scale": (0.2, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "flip_prob": 0.5,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "max_pixels": 64_000_000,
}
NO_DROPOUTS = {"dropout": 0.0, "attention_dropout": 0.0, "post_mlp_dropout": 0.0, "layer_dropout": 0.0}
ALL: dict[str, Any] = {
    **{name: value for name, value in NO_OTHER_MODALITY.items() if not name.endswith(".image")},
    **RUN,
    **under("model.encoder", ENCODER | NO_DROPOUTS | {"norm_eps": 1e-6}),
    **under("model.image", SIDE_OF_ALL),
    **under("data.image", SOURCE),
    "data.num_workers": 10,
    "optim.betas": (0.9, 0.95),
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.05,
    "optim.clip_norm": 4.0,
    "schedule.warmup_steps": 50_040,
    "ema.start": 0.9998,
    "checkpoint.every_steps": 25_000,
    "health.on_collapse": "warn",  # ours: the reference does not look at images
}
LARGER: dict[str, Any] = {
    "optim.lr": 4e-4,
    "model.encoder.num_heads": 16,
    "model.image.prenet_depth": 0,
    "model.image.mask.prob": 0.75,
    "model.image.mask.adjust": 0.1,
    "model.image.decoder.dim": 1024,
    "model.image.decoder.kernel": 5,
    "model.image.decoder.num_layers": 3,
    "model.image.loss.cls_rows": 8 * 16,
}
HUGE: dict[str, Any] = LARGER | {
    "model.encoder.depth": 32,
    "model.encoder.dim": 1280,
    "model.image.target.top_k": 24,
}
DIFFERENT: dict[str, dict[str, Any]] = {
    "image-base": {
        "model.encoder.depth": 10,
        "model.encoder.dim": 768,
        "model.encoder.num_heads": 12,
        "model.image.patch_size": 16,
        "model.image.prenet_depth": 2,
        "model.image.mask.prob": 0.8,
        "model.image.mask.adjust": 0.07,
        "model.image.decoder.dim": 768,
        "model.image.decoder.kernel": 3,
        "model.image.decoder.num_layers": 6,
        "model.image.target.top_k": 10,
        "model.image.loss.cls_rows": 16 * 16,
        "optim.lr": 1e-3,
        "ema.end": 0.99999,
        "ema.anneal_steps": 100_000,
        "training.max_steps": 375_300,
        "training.global_batch_size": 256,
    },
    "image-large": LARGER
    | {
        "model.encoder.depth": 24,
        "model.encoder.dim": 1024,
        "model.image.patch_size": 16,
        "model.image.target.top_k": 18,
        "ema.end": 0.99999,
        "ema.anneal_steps": 150_000,
        "training.max_steps": 375_300,
        "training.global_batch_size": 128,
    },
    "image-huge16": HUGE
    | {
        "model.image.patch_size": 16,
        "ema.end": 0.99995,
        "ema.anneal_steps": 150_000,
        "training.max_steps": 375_300,
        "training.global_batch_size": 128,
    },
    "image-huge14": HUGE
    | {
        "model.image.patch_size": 14,
        "ema.end": 1.0,
        "ema.anneal_steps": 300_000,
        "training.max_steps": 500_000,
        "training.global_batch_size": 256,
    },
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_field(name: str) -> None:
    assert differing(recipe(name), ALL | DIFFERENT[name]) == {}


@pytest.mark.parametrize(
    ("name", "num_gpus", "per_gpu"),
    [("image-base", 16, 16), ("image-large", 16, 8), ("image-huge16", 16, 8), ("image-huge14", 32, 8)],
)
def test_a_step_takes_what_the_reference_takes(name: str, num_gpus: int, per_gpu: int) -> None:
    assert recipe(name).microbatches("image", num_gpus) == (per_gpu, 1)


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("image-base", 0, 0.9998),
        ("image-base", 1, 0.9998000019),
        ("image-base", 50_000, 0.999895),
        ("image-base", 100_000, 0.99999),
        ("image-large", 75_000, 0.999895),
        ("image-huge16", 75_000, 0.999875),
        ("image-huge14", 150_000, 0.9999),
        ("image-huge14", 300_000, 1.0),
    ],
)
def test_decay_of_the_teacher(name: str, step: int, expected: float) -> None:
    section = recipe(name).ema
    assert ema.decay(step, section.start, section.end, section.anneal_steps) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "kept", "tokens"),
    [("image-base", 39, 196), ("image-large", 49, 196), ("image-huge16", 49, 196), ("image-huge14", 64, 256)],
)
def test_patches_that_a_view_keeps(name: str, kept: int, tokens: int) -> None:
    side = recipe(name).model.image
    assert side is not None
    assert (side.num_kept, side.num_tokens) == (kept, tokens)
