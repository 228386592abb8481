"""Between log lines the host waits for the device where DeepSpeed decides whether to step, and nowhere else."""

import json

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.waits_worker import STEPS

IN_HOST_MEMORY = {
    "pretrain.trainer:Trainer._fetch",  # counts of the losses, and whether to stop, over gloo
    "pretrain.task:Data2VecTask.microbatch",  # sample numbers of a batch that is not on the device yet
    "pretrain.task:Data2VecTask.check",  # tokens of the same
    "pretrain.parallel.rows:own_draws",  # a seed
}
"""Reads of tensors that are in host memory whatever the device is."""
NORM = "deepspeed.runtime.utils:is_invalid_grad_norm"
AROUND = {f"deepspeed.runtime.utils:{name}" for name in ("mask_nan_or_inf_with_val_inplace", "is_invalid_grad_norm")}
CLIPS = "deepspeed.runtime.utils:clip_tensors_by_global_norm"
STAGE_1_2 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer."
STAGE_3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3."
RECORD = "deepspeed.runtime.zero.utils:"
CASES = {
    # DeepSpeed copies a number to the device to mark a norm that is not finite, reads the norm, copies one to clip
    # with: of waits in a row only the first finds the device at work
    ("1:bf16", 1): {*AROUND, CLIPS},
    ("1:fp32", 1): AROUND,
    # and before it whether any gradient is not finite
    ("2:bf16", 1): {*AROUND, STAGE_1_2 + "has_overflow"},
    # and the norms of gradients that lie in host memory
    ("2:bf16:offload", 1): {
        NORM,
        STAGE_1_2 + "has_overflow",
        STAGE_1_2 + "complete_grad_norm_calculation_for_cpu_offload",
        STAGE_1_2 + "update_offload_overflow_tracker",
    },
    # and, as long as the order of modules is not the recorded one, checks that all ranks have the same
    ("3:bf16", 1): {
        NORM,
        STAGE_3 + "get_grad_norm_direct",
        RECORD + "assert_lst_len_same_as_other_ranks",
        RECORD + "get_lst_from_rank0",
        RECORD + "get_lst_from_rank0.<locals>.<listcomp>",
    },
    # here DeepSpeed leaves the decision to the optimizer, which is ours
    ("0:bf16", 1): {"pretrain.optim:ClippingAdamW.step"},
    ("1:bf16:tp2", 2): {*AROUND, CLIPS},
    ("1:bf16:pp2", 2): {*AROUND, CLIPS},
}


def parse(case: str) -> str:
    """What the worker takes."""
    stage, dtype, *options = case.split(":")
    parallel: dict[str, object] = {"zero_stage": int(stage)}
    if "offload" in options:
        parallel["offload"] = "optimizer"
    parallel |= {f"{option[:2]}_size": int(option[2]) for option in options if option[:2] in ("tp", "pp")}
    return json.dumps({"dtype": dtype, "parallel": parallel})


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, list[str]]]:
    """By case, by number of steps that were done, where the host waited."""
    out, found = tmp_path_factory.mktemp("waits"), {}
    for number in (1, 2):
        cases = [case for case in CASES if case[1] == number]
        printed = run_ranks("tests.distributed.waits_worker", [str(out), *(parse(case) for case, _ in cases)], number)
        lines = [line for line in printed[0].splitlines() if line.startswith("PLACES ")]
        found |= {case: json.loads(line.removeprefix("PLACES ")) for case, line in zip(cases, lines, strict=True)}
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_host_waits_where_deepspeed_decides(places: dict, case: tuple[str, int]) -> None:
    for step in range(STEPS - 1):
        assert set(places[case][str(step)]) - IN_HOST_MEMORY == CASES[case], step


def test_the_guard_sees_what_a_logged_step_reads(places: dict) -> None:
    last = places["1:bf16", 1][str(STEPS)]
    assert {"pretrain.observe.metrics:LossMeter.read", "pretrain.parallel.zero:StudentEngine.gradient_norm"} <= set(
        last
    )
