"""audio-base and audio-large, field by field (data2vec2-facts.md 2.3), and what follows from the fields."""

from typing import Any

import pytest

from model import ema
from model.accounting import num_parameters
from model.config import AudioConfig
from pretrain import schedules
from pretrain.recipes.registry import recipe
from tests.golden.tables import optim_table
from tests.unit.pretrain.recipes.fields import NO_OTHER_MODALITY, OWN_SOURCE, differing, under
from tests.unit.pretrain.recipes.reference import NO_CLS, SIDE, SPEECH_AND_TEXT

SIDE_OF_BOTH: dict[str, Any] = (
    SIDE
    | NO_CLS
    | {
        "conv_layers": (
            (512, 10, 5),
            (512, 3, 2),
            (512, 3, 2),
            (512, 3, 2),
            (512, 3, 2),
            (512, 2, 2),
            (512, 2, 2),
        ),
        "positions_width": 95,
        "positions_groups": 16,
        "positions_depth": 5,
        "prenet_dropout": 0.1,
        "alibi.distance": "manhattan",
        "alibi.scale": 1.0,
        "alibi.learned": True,
        "alibi.per_head": True,
        "alibi.per_layer": False,
        "teacher_scope": "context",
        "mask.kind": "block",
        "mask.length": 5,
        "mask.inverse": False,
        "decoder.groups": 16,
        "decoder.kernel": 7,
        "decoder.num_layers": 4,
        "decoder.residual": True,
        "decoder.projection_layers": 1,
        "decoder.projection_ratio": 2.0,
        "decoder.input_dropout": 0.1,
        "target.instance_norm_layer": True,
        "target.layer_norm_layer": False,
        "target.layer_norm": False,
        "target.instance_norm": False,
        "loss.beta": 0.0,
        "loss.scale": None,
    }
)
SOURCE: dict[str, Any] = OWN_SOURCE | {
    "sample_rate": 16_000,
    "min_seconds": 2.0,
    "max_seconds": 20.0,
    "crop_to_shortest": True,
    "normalize": True,
    "speed_factors": (),
    "noise_prob": 0.0,
    "noise_snr_db": (10.0, 40.0),
    "max_decoded_seconds": 600.0,
}
BOTH: dict[str, Any] = {
    **{name: value for name, value in NO_OTHER_MODALITY.items() if not name.endswith(".audio")},
    **SPEECH_AND_TEXT,
    **under("model.audio", SIDE_OF_BOTH),
    **under("data.audio", SOURCE),
    "checkpoint.every_steps": 25_000,
}
BASE: dict[str, Any] = BOTH | {
    "model.encoder.depth": 12,
    "model.encoder.dim": 768,
    "model.encoder.num_heads": 12,
    "model.encoder.layer_dropout": 0.05,
    "model.audio.num_views": 8,
    "model.audio.prenet_depth": 0,
    "model.audio.prenet_layer_dropout": 0.05,
    "model.audio.mask.prob": 0.5,
    "model.audio.mask.adjust": 0.05,
    "model.audio.decoder.dim": 384,
    "model.audio.target.top_k": 8,
    "data.audio.batch_seconds": 62.5,
    "data.num_workers": 6,
    "optim.lr": 7.5e-4,
    "optim.clip_norm": 0.0,
    "schedule.warmup_steps": 8_000,
    "ema.start": 0.999,
    "ema.end": 0.99999,
    "ema.anneal_steps": 75_000,
    "training.max_steps": 400_000,
    "training.global_batch_size": 8,
}
LARGE: dict[str, Any] = BOTH | {
    "model.encoder.depth": 16,
    "model.encoder.dim": 1024,
    "model.encoder.num_heads": 16,
    "model.encoder.layer_dropout": 0.0,
    "model.audio.num_views": 12,
    "model.audio.prenet_depth": 8,
    "model.audio.prenet_layer_dropout": 0.0,
    "model.audio.mask.prob": 0.55,
    "model.audio.mask.adjust": 0.1,
    "model.audio.decoder.dim": 768,
    "model.audio.target.top_k": 16,
    "data.audio.batch_seconds": 20.0,
    "data.num_workers": 8,
    "optim.lr": 4e-4,
    "optim.clip_norm": 1.0,
    "schedule.warmup_steps": 10_000,
    "ema.start": 0.9997,
    "ema.end": 1.0,
    "ema.anneal_steps": 300_000,
    "training.max_steps": 600_000,
    "training.global_batch_size": 48,
}
CONFIGS = {"audio-base": "base_audio_only_task", "audio-large": "large_audio_only_task"}


@pytest.mark.parametrize(("name", "expected"), [("audio-base", BASE), ("audio-large", LARGE)])
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


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        # of base the reference's own (tests/golden/audio/mini.json, decay_schedule)
        ("audio-base", 0, 0.999),
        ("audio-base", 1, 0.9990000132),
        ("audio-base", 1_000, 0.9990132),
        ("audio-base", 37_500, 0.999495),
        ("audio-base", 74_999, 0.9999899868000001),
        ("audio-base", 75_000, 0.99999),
        ("audio-base", 399_999, 0.99999),
        ("audio-large", 0, 0.9997),
        ("audio-large", 1, 0.999700001),
        ("audio-large", 150_000, 0.99985),
        ("audio-large", 299_999, 0.999999999),
        ("audio-large", 300_000, 1.0),
        ("audio-large", 599_999, 1.0),
    ],
)
def test_decay_of_the_teacher(name: str, step: int, expected: float) -> None:
    section = recipe(name).ema
    assert ema.decay(step, section.start, section.end, section.anneal_steps) == pytest.approx(expected, rel=1e-12)


def test_the_large_teacher_freezes() -> None:
    section = recipe("audio-large").ema
    assert ema.decay(300_000, section.start, section.end, section.anneal_steps) == 1.0


@pytest.mark.parametrize(
    ("name", "samples_per_batch", "num_gpus"), [("audio-base", 1_000_000, 8), ("audio-large", 320_000, 48)]
)
def test_a_step_takes_what_the_reference_takes(name: str, samples_per_batch: int, num_gpus: int) -> None:
    """max_tokens per GPU, one batch each; and the same in total on fewer ranks."""
    run = recipe(name)
    assert run.data.audio is not None
    assert run.data.audio.batch_seconds * run.data.audio.sample_rate == samples_per_batch
    assert run.microbatches("audio", num_gpus) == (1, 1)
    assert run.microbatches("audio", num_gpus // 4) == (1, 4)


@pytest.mark.parametrize(("name", "expected"), [("audio-base", 93_783_308), ("audio-large", 315_184_144)])
def test_number_of_parameters(name: str, expected: int) -> None:
    assert num_parameters(recipe(name).model) == expected


def test_frames_and_masks_of_five_seconds() -> None:
    """data2vec2-facts.md 1.1 and 1.4: 249 frames of 400 samples, of which 124 or 136 go."""
    removed = {}
    for name in CONFIGS:
        side = recipe(name).model.audio
        assert isinstance(side, AudioConfig)
        assert (side.num_frames(80_000), side.receptive_field, side.positions_kernel) == (249, 400, 19)
        removed[name] = side.mask.num_removed(249)
    assert removed == {"audio-base": 124, "audio-large": 136}
