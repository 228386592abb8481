"""Config sections -> DeepSpeed JSON, with a user's own JSON laid over it. No torch."""

import json
from pathlib import Path
from typing import Any

from pretrain.errors import RunError
from pretrain.sections import OptimSection, ParallelSection, PrecisionSection

OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "managed_gradient_accumulation",
    "gradient_clipping",
    "bf16.enabled",
    "fp16.enabled",
    "zero_optimization.stage",
    "zero_optimization.offload_optimizer.device",
    "zero_optimization.offload_param",
    "data_types.grad_accum_dtype",
    "optimizer",
    "scheduler",
)
"""Keys that the run's configuration decides: a user's JSON may only say "auto" or the same value."""
_SECTIONS = {name.rpartition(".")[0] for name in OWNED} - {""}
_SWITCHES = ("zero_optimization.overlap_comm",)
_AMOUNTS = {
    "zero_optimization.stage": 0,
    "zero_optimization.reduce_bucket_size": 1,
    "zero_optimization.allgather_bucket_size": 0,
    "zero_optimization.sub_group_size": 0,
    "zero_optimization.stage3_prefetch_bucket_size": 0,
    "zero_optimization.stage3_param_persistence_threshold": 0,
    "zero_optimization.stage3_max_live_parameters": 0,
    "zero_optimization.stage3_max_reuse_distance": 0,
    "train_batch_size": 1,
    "train_micro_batch_size_per_gpu": 1,
}
"""Whole numbers, and the least that DeepSpeed (0.19.8) takes."""


def deepspeed_config(
    optim: OptimSection,
    precision: PrecisionSection,
    parallel: ParallelSection,
    *,
    microbatch_size: int,
    dp_size: int,
    user: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON that ``deepspeed.initialize`` gets.

    ``backward`` only accumulates and ``step`` is the boundary (unmanaged accumulation), so DeepSpeed
    sees one microbatch per step; the trainer divides the loss by the global count itself.

    Raises:
        RunError: if the user's JSON contradicts a key that the configuration owns, naming both values; if no engine
            can do what the sections and the JSON say together.
    """
    if (
        precision.dtype == "bf16"
        and parallel.zero_stage == 0
        and parallel.tp_size > 1
        and not parallel.sequence_parallel
    ):
        raise RunError(
            f"parallel.zero_stage: 0 does not go with tp_size {parallel.tp_size} in bf16: its weights stay fp32 under "
            "autocast, in which megatron's linears do not take part; the nearest stage that does is 1 "
            "(or set sequence_parallel)"
        )
    bf16_weights = precision.dtype == "bf16" and parallel.zero_stage > 0
    generated: dict[str, Any] = {
        "train_batch_size": microbatch_size * dp_size,
        "train_micro_batch_size_per_gpu": microbatch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # At stage 0 the optimizer itself measures and clips (zero.ClippingAdamW): DeepSpeed's own clipping
        # there keeps no record of the norm.
        "gradient_clipping": optim.clip_norm if parallel.zero_stage > 0 else 0.0,
        "zero_optimization": _zero(parallel),
        # torch's AdamW on flat fp32 partitions is exactly what DeepSpeed's list of tested optimizers leaves out.
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own CPU optimizer is compiled at its first use.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16_weights},
        "steps_per_print": None,
        # It measures a throughput that nothing shows, and waits for the device twice a step to do so.
        "timers": {"throughput": {"enabled": False}},
    }
    if bf16_weights:
        generated["data_types"] = {"grad_accum_dtype": "fp32"}
    merged = _overlay(generated, user or {}, "")
    if merged["zero_optimization"].get("overlap_comm") and parallel.zero_stage < 2:
        raise RunError(
            f"--deepspeed: zero_optimization.overlap_comm is true, but stage {parallel.zero_stage} reduces gradients "
            "at the step, where nothing is left to overlap; set it to false, or parallel.zero_stage to 2 or 3"
        )
    return merged


def _zero(parallel: ParallelSection) -> dict[str, Any]:
    section: dict[str, Any] = {"stage": parallel.zero_stage}
    if parallel.offload == "optimizer":
        section["offload_optimizer"] = {"device": "cpu"}
    if parallel.zero_stage == 3:
        # It would replace torch.nn.functional.linear in the whole process; linears.ReleasingLinears saves as much.
        section["memory_efficient_linear"] = False
    return section


def read_user_json(path: Path) -> dict[str, Any]:
    """What a user's DeepSpeed JSON says: without ``"auto"`` and null, which leave the default.

    Raises:
        RunError: if it is missing, not JSON or not an object; if a key that decides memory, traffic or the layout is
            not of the kind that DeepSpeed takes.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"--deepspeed {path}: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"--deepspeed {path}: not valid JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise RunError(f"--deepspeed {path}: expected a JSON object at the top")
    try:
        return _said(loaded, "")
    except ValueError as error:
        raise RunError(f"--deepspeed {path}: {error}") from None


def _said(section: dict[str, Any], path: str) -> dict[str, Any]:
    """Keys that have a value, checked.

    Raises:
        ValueError: naming the first wrong one.
    """
    said = {}
    for key, value in section.items():
        name = path + key
        if value is None or value == "auto":
            continue
        if isinstance(value, dict):
            value = _said(value, f"{name}.")
        elif name in _SECTIONS:
            raise ValueError(f"{name} is {json.dumps(value)}, expected a JSON object")
        if name in _SWITCHES and not isinstance(value, bool):
            raise ValueError(f"{name} is {json.dumps(value)}, expected true or false")
        if name in _AMOUNTS:
            value = _amount(name, value)
        said[key] = value
    return said


def _amount(name: str, value: Any) -> int:
    """A whole number, which JSON may have as 5e8."""
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or value < _AMOUNTS[name]:
        raise ValueError(f"{name} is {json.dumps(value)}, expected a whole number from {_AMOUNTS[name]}")
    return int(value)


def _overlay(ours: dict[str, Any], user: dict[str, Any], path: str) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in user.items():
        name = path + key
        if isinstance(value, dict) and isinstance(ours.get(key, {}), dict) and name not in OWNED:
            merged[key] = _overlay(ours.get(key, {}), value, f"{name}.")
        elif name not in OWNED:
            merged[key] = value
        elif value != ours.get(key):
            raise RunError(
                f"--deepspeed: {name} is {json.dumps(value)} but the run's configuration gives "
                f'{json.dumps(ours.get(key))}; change the configuration or say "auto"'
            )
    return merged
