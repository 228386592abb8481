"""text-base, text-large, text-large-1m, field by field (data2vec2-facts.md 2.3), and what follows from the fields."""

from typing import Any

import pytest

from model import ema
from model.accounting import num_parameters
from pretrain import schedules
from pretrain.recipes.registry import recipe
from tests.golden.tables import optim_table
from tests.unit.pretrain.recipes.fields import NO_OTHER_MODALITY, OWN_SOURCE, differing, under
from tests.unit.pretrain.recipes.reference import NO_CLS, SIDE, SPEECH_AND_TEXT

SIDE_OF_ALL: dict[str, Any] = (
    SIDE
    | NO_CLS
    | {
        "vocab_size": 50_265,
        "max_positions": 512,
        "dropout": 0.1,
        "num_views": 8,
        "prenet_depth": 0,
        "prenet_dropout": 0.0,
        "prenet_layer_dropout": 0.0,
        "alibi": None,
        "teacher_scope": "encoder",
        "mask.kind": "random",
        "mask.adjust": 0.0,
        "mask.length": 1,
        "mask.inverse": False,
        "decoder.dim": 768,
        "decoder.groups": 1,
        "decoder.kernel": 9,
        "decoder.num_layers": 5,
        "decoder.residual": False,
        "decoder.projection_layers": 2,
        "decoder.projection_ratio": 2.0,
        "decoder.input_dropout": 0.1,
        "target.layer_norm": False,
        "loss.scale": 1.0,
    }
)
ALL: dict[str, Any] = {
    **{name: value for name, value in NO_OTHER_MODALITY.items() if not name.endswith(".text")},
    **SPEECH_AND_TEXT,
    **under("model.text", SIDE_OF_ALL),
    **under("data.text", OWN_SOURCE),
    "model.encoder.layer_dropout": 0.0,
    "data.text.tokens_per_sample": 512,
    "data.num_workers": 1,
    "optim.clip_norm": 1.0,
    "schedule.warmup_steps": 4_000,
    "ema.start": 0.9999,
    "ema.end": 0.99999,
    "ema.anneal_steps": 100_000,
    "training.global_batch_size": 64,
    "checkpoint.every_steps": 50_000,
}
BASE: dict[str, Any] = ALL | {
    "model.encoder.depth": 12,
    "model.encoder.dim": 768,
    "model.encoder.num_heads": 12,
    "model.text.mask.prob": 0.48,
    "model.text.target.top_k": 12,
    "model.text.target.instance_norm_layer": True,
    "model.text.target.layer_norm_layer": False,
    "model.text.target.instance_norm": False,
    "model.text.loss.beta": 0.0,
    "optim.lr": 2e-4,
    "training.max_steps": 1_000_000,
}
LARGE: dict[str, Any] = ALL | {
    "model.encoder.depth": 24,
    "model.encoder.dim": 1024,
    "model.encoder.num_heads": 16,
    "model.text.mask.prob": 0.5,
    "model.text.target.top_k": 24,
    "model.text.target.instance_norm_layer": False,
    "model.text.target.layer_norm_layer": True,
    "model.text.target.instance_norm": True,
    "model.text.loss.beta": 0.0,
    "optim.lr": 1e-4,
    "training.max_steps": 600_000,
}
LARGE_1M = LARGE | {"model.text.loss.beta": 4.0, "training.max_steps": 1_000_000}
CONFIGS = {
    "text-base": "base_text_only_task",
    "text-large": "large_text_only_task",
    "text-large-1m": "large_text_only_task_pgrp_1M",
}


@pytest.mark.parametrize(
    ("name", "expected"), [("text-base", BASE), ("text-large", LARGE), ("text-large-1m", LARGE_1M)]
)
def test_every_field(name: str, expected: dict[str, Any]) -> None:
    assert differing(recipe(name), expected) == {}
    assert recipe(name).logging.every_steps == 200


@pytest.mark.parametrize("name", CONFIGS)
def test_learning_rate_equals_the_reference(name: str) -> None:
    run = recipe(name)
    table = optim_table()["cosine_lr"][CONFIGS[name]]
    assert len(table) == 10
    for step, expected in table.items():
        lr = schedules.cosine_lr(
            int(step), peak=run.optim.lr, warmup_steps=run.schedule.warmup_steps, max_steps=run.training.max_steps
        )
        assert lr == pytest.approx(expected, rel=1e-9, abs=1e-20), step


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.9999),
        (1, 0.9999000009),
        (1_000, 0.9999009),
        (50_000, 0.999945),
        (99_999, 0.9999899991),
        (100_000, 0.99999),
        (599_999, 0.99999),
    ],
)
def test_decay_of_the_teacher(name: str, step: int, expected: float) -> None:
    section = recipe(name).ema
    assert ema.decay(step, section.start, section.end, section.anneal_steps) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "num_gpus", "per_gpu"), [("text-base", 16, 4), ("text-large", 32, 2), ("text-large-1m", 32, 2)]
)
def test_a_step_takes_what_the_reference_takes(name: str, num_gpus: int, per_gpu: int) -> None:
    run = recipe(name)
    assert run.units_per_step("text") == 64
    assert run.microbatches("text", num_gpus) == (per_gpu, 1)


@pytest.mark.parametrize(
    ("name", "expected"), [("text-base", 152_961_792), ("text-large", 385_379_584), ("text-large-1m", 385_379_584)]
)
def test_number_of_parameters(name: str, expected: int) -> None:
    assert num_parameters(recipe(name).model) == expected


def test_masks_of_a_block() -> None:
    """data2vec2-facts.md 1.4: of 512 tokens 246 or 256 go."""
    removed = {}
    for name in CONFIGS:
        side = recipe(name).model.text
        assert side is not None
        removed[name] = side.mask.num_removed(512)
    assert removed == {"text-base": 246, "text-large": 256, "text-large-1m": 256}
