"""Sections -> DeepSpeed JSON, and a user's JSON over it."""

import json
from pathlib import Path

import pytest

from pretrain.errors import RunError
from pretrain.parallel.deepspeed_config import deepspeed_config, read_user_json
from pretrain.sections import OptimSection, ParallelSection, PrecisionSection


def generate(stage: int, dtype: str, user: dict | None = None, offload: str = "none") -> dict:
    return deepspeed_config(
        OptimSection(clip_norm=4.0),
        PrecisionSection(dtype=dtype),  # type: ignore[arg-type]
        ParallelSection(zero_stage=stage, offload=offload),  # type: ignore[arg-type]
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


def test_stage_3_leaves_torch_alone_and_offload_compiles_nothing() -> None:
    config = generate(3, "bf16", offload="optimizer")
    assert config["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "memory_efficient_linear": False,
    }
    assert config["zero_force_ds_cpu_optimizer"] is False
    tuned = generate(3, "bf16", {"zero_optimization": {"offload_optimizer": {"pin_memory": True}}}, "optimizer")
    assert tuned["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}


def test_offload_needs_sharded_state() -> None:
    with pytest.raises(RunError, match=r"parallel.offload: .*zero_stage is 0; the nearest stage is 1"):
        ParallelSection(zero_stage=0, offload="optimizer")


def test_tensor_parallelism_in_bf16_needs_sharded_state() -> None:
    """At stage 0 megatron's linears would meet activations that autocast has rounded, and fail."""
    optim, cut = OptimSection(), ParallelSection(zero_stage=0, tp_size=2)
    with pytest.raises(RunError, match=r"parallel.zero_stage: 0 does not go with tp_size 2 in bf16.*nearest .* is 1"):
        deepspeed_config(optim, PrecisionSection(dtype="bf16"), cut, microbatch_size=1, dp_size=1)
    assert deepspeed_config(optim, PrecisionSection(dtype="fp32"), cut, microbatch_size=1, dp_size=1)


@pytest.mark.parametrize(
    ("stage", "teacher", "gathers"),
    [(1, "auto", False), (3, "auto", True), (3, "resident", False), (0, "gathered", True)],
)
def test_the_teacher_is_gathered_at_stage_3_unless_told(stage: int, teacher: str, gathers: bool) -> None:
    assert ParallelSection(zero_stage=stage, teacher=teacher).gathers_teacher is gathers  # type: ignore[arg-type]


def test_user_json_tunes_what_the_config_does_not_own() -> None:
    user = {"zero_optimization": {"reduce_bucket_size": 1000}, "train_batch_size": 16}
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
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, ["offload_param is", "gives null"]),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, ["offload_optimizer.device is", "null"]),
    ],
)
def test_contradictions_name_both_values(user: dict, words: list[str]) -> None:
    with pytest.raises(RunError) as caught:
        generate(1, "bf16", user)
    for word in words:
        assert word in str(caught.value)


def test_auto_and_null_leave_the_default(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        '{"optimizer": null, "bf16": {"enabled": "auto"}, "zero_optimization": {"reduce_bucket_size": 5e8, '
        '"offload_optimizer": null, "stage": "auto", "sub_group_size": "auto", "overlap_comm": null}}'
    )
    user = read_user_json(path)
    assert user == {"bf16": {}, "zero_optimization": {"reduce_bucket_size": 500_000_000}}
    assert generate(2, "bf16", user, "optimizer")["zero_optimization"] == {
        "stage": 2,
        "offload_optimizer": {"device": "cpu"},
        "reduce_bucket_size": 500_000_000,
    }
    path.write_text('{"zero_optimization": null}')
    assert read_user_json(path) == {}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('{"reduce_bucket_size": "x"}', 'reduce_bucket_size is "x", expected a whole number from 1'),
        ('{"reduce_bucket_size": 0}', "reduce_bucket_size is 0, expected a whole number from 1"),
        ('{"sub_group_size": 1.5}', "sub_group_size is 1.5, expected a whole number from 0"),
        ('{"stage3_max_live_parameters": true}', "stage3_max_live_parameters is true, expected a whole number"),
        ('{"overlap_comm": 1}', "overlap_comm is 1, expected true or false"),
        ('{"offload_optimizer": false}', "offload_optimizer is false, expected a JSON object"),
    ],
)
def test_a_wrong_value_names_key_and_file(tmp_path: Path, section: str, said: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(f'{{"zero_optimization": {section}}}')
    with pytest.raises(RunError) as caught:
        read_user_json(path)
    assert str(caught.value).startswith(f"--deepspeed {path}: zero_optimization.{said}")


@pytest.mark.parametrize("stage", [0, 1])
def test_overlapping_is_refused_where_deepspeed_refuses_it(stage: int) -> None:
    user = {"zero_optimization": {"overlap_comm": True}}
    with pytest.raises(RunError, match=rf"overlap_comm is true, but stage {stage} .*zero_stage to 2 or 3"):
        generate(stage, "bf16", user)
    assert generate(2, "bf16", user)["zero_optimization"]["overlap_comm"] is True
    assert generate(stage, "bf16", {"zero_optimization": {"overlap_comm": False}})


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
    path.write_text('{"zero_optimization": {"offload_optimizer": "cpu"}}')
    with pytest.raises(RunError, match='offload_optimizer is "cpu", expected a JSON object'):
        read_user_json(path)
