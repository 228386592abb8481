"""Sections -> DeepSpeed JSON, and a user's JSON over it."""

import json
from pathlib import Path

import pytest

from pretrain.errors import RunError
from pretrain.parallel.deepspeed_config import deepspeed_config, read_user_json
from pretrain.sections import OptimSection, ParallelSection, PrecisionSection


def generate(stage: int, dtype: str, user: dict | None = None) -> dict:
    return deepspeed_config(
        OptimSection(clip_norm=4.0),
        PrecisionSection(dtype=dtype),  # type: ignore[arg-type]
        ParallelSection(zero_stage=stage),  # type: ignore[arg-type]
        microbatch_size=8,
        dp_size=2,
        user=user,
    )


def test_bf16_accumulates_gradients_in_fp32() -> None:
    config = generate(1, "bf16")
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["gradient_clipping"] == 4.0


def test_stage_0_keeps_fp32_weights_and_leaves_clipping_to_the_optimizer() -> None:
    config = generate(0, "bf16")
    assert config["bf16"] == {"enabled": False}
    assert config["gradient_clipping"] == 0.0


def test_user_json_tunes_what_the_config_does_not_own() -> None:
    user = {"zero_optimization": {"stage": "auto", "reduce_bucket_size": 1000}, "train_batch_size": 16}
    config = generate(2, "fp32", user)
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({"zero_optimization": {"stage": 3}}, ["zero_optimization.stage is 3", "gives 1"]),
        ({"bf16": {"enabled": False}}, ["bf16.enabled is false", "gives true"]),
        ({"train_batch_size": 64}, ["train_batch_size is 64", "gives 16"]),
        ({"optimizer": {"type": "Adam"}}, ["optimizer is"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled is true"]),
    ],
)
def test_contradictions_name_both_values(user: dict, words: list[str]) -> None:
    with pytest.raises(RunError) as caught:
        generate(1, "bf16", user)
    for word in words:
        assert word in str(caught.value)


def test_unreadable_user_json(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    with pytest.raises(RunError, match="No such file"):
        read_user_json(path)
    path.write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        read_user_json(path)
    path.write_text("[]")
    with pytest.raises(RunError, match="object"):
        read_user_json(path)
    path.write_text(json.dumps({"zero_optimization": {}}))
    assert read_user_json(path) == {"zero_optimization": {}}
