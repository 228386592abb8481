"""ZeRO 0 to 3, tensor parallelism, offload and both teachers on 1, 2 and 4 processes: the same losses and weights."""

import json
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.store import locate
from pretrain.checkpoint.weights import read_weights
from tests.distributed.launch import run_ranks, train_records
from tests.distributed.layout_worker import STEPS, Case

CASES = {
    1: [
        *("0:fp32", "1:fp32", "2:fp32", "3:fp32", "3,3:fp32", "1:fp32:gathered"),
        *("0:bf16", "1:bf16", "2:bf16", "3:bf16"),
    ],
    2: [
        *("0:fp32", "1:fp32", "2:fp32", "3:fp32", "0:fp32:gathered", "1:fp32:gathered", "3:fp32:resident"),
        *("1:fp32:offload", "2:fp32:offload", "3:fp32:offload", "3,1t2,3:fp32", "3t2:fp32"),
        *("0:bf16", "1:bf16", "2:bf16", "3:bf16", "2:bf16:gathered", "3:bf16:resident", "1:bf16:offload"),
    ],
    4: ["1:fp32:gathered", "3t2:fp32", "1t2:fp32:gathered"],
}
ALL = [(case, num_processes) for num_processes, cases in CASES.items() for case in cases]
FP32 = [(case, num_processes) for case, num_processes in ALL if "fp32" in case]
BF16 = [(case, num_processes) for case, num_processes in ALL if "bf16" in case]
PAIRS = [("0:fp32", "0:fp32:gathered"), ("1:fp32", "1:fp32:gathered"), ("2:bf16", "2:bf16:gathered")] + [
    (f"3:{dtype}:resident", f"3:{dtype}") for dtype in ("fp32", "bf16")
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digit_shards: Path) -> Path:
    out = tmp_path_factory.mktemp("layouts")
    for num_processes, cases in CASES.items():
        run_ranks("tests.distributed.layout_worker", [str(digit_shards), str(out), *cases], num_processes)
    return out


def run_of(runs: Path, case: str, num_processes: int) -> Path:
    return Case(case).directory(runs, num_processes)


def relative(a: float, b: float) -> float:
    return abs(a - b) / abs(b)


@pytest.mark.parametrize(("case", "num_processes"), FP32)
def test_fp32_equals_one_plain_process(runs: Path, case: str, num_processes: int) -> None:
    reference, run_dir = run_of(runs, "0:fp32", 1), run_of(runs, case, num_processes)
    expected_records, records = train_records(reference), train_records(run_dir)
    assert len(records) == len(expected_records) == STEPS
    for expected, record in zip(expected_records, records, strict=True):
        for name in ("loss", "loss_regression", "loss_cls", "grad_norm", "target_spread", "prediction_spread"):
            limit = 1e-5 if name.startswith("loss") else 1e-4
            assert relative(record[name], expected[name]) < limit, (name, record["step"])
    for source in ("student", "teacher"):
        wanted, weights = (read_weights(locate(path), source) for path in (reference, run_dir))  # type: ignore[arg-type]
        assert weights.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=2e-4, msg=f"{source}/{name}")


@pytest.mark.parametrize(("case", "num_processes"), BF16)
def test_bf16_stays_near_fp32(runs: Path, case: str, num_processes: int) -> None:
    reference, seen = train_records(run_of(runs, "0:fp32", 1)), train_records(run_of(runs, case, num_processes))
    for name in ("loss", "grad_norm"):
        worst = max(relative(record[name], expected[name]) for expected, record in zip(reference, seen, strict=True))
        assert 0 < worst < 0.02, name


@pytest.mark.parametrize(("resident", "gathered"), PAIRS)
def test_gathered_teacher_gives_the_same_bits(runs: Path, resident: str, gathered: str) -> None:
    one, other = run_of(runs, resident, 2), run_of(runs, gathered, 2)
    for expected, record in zip(train_records(one), train_records(other), strict=True):
        assert [record[name] for name in ("loss", "grad_norm", "target_spread")] == [
            expected[name] for name in ("loss", "grad_norm", "target_spread")
        ]
    for source in ("student", "teacher"):
        wanted, weights = (read_weights(locate(path), source) for path in (one, other))  # type: ignore[arg-type]
        assert all(torch.equal(weights[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(("case", "num_processes"), ALL)
def test_teacher_is_exact_and_every_rank_holds_its_share(runs: Path, case: str, num_processes: int) -> None:
    results = json.loads((run_of(runs, case, num_processes) / "result.json").read_text())
    assert len(results) == num_processes
    dp_size = num_processes // Case(case).layouts[-1][1]
    stage = Case(case).layouts[-1][0]
    gathered = "gathered" in case or (stage == 3 and "resident" not in case)
    for result in results:
        assert result["ema_error"] < 1e-6
        padding_bytes = 4 * (result["teacher_parameters"] if stage == 3 else 4 * num_processes)
        assert 0 <= result["shard_bytes"] - 4 * result["teacher_numel"] / dp_size <= padding_bytes
        extra_token = 96
        assert result["at_rest_numel"] == (extra_token if gathered else result["teacher_numel"])


@pytest.mark.parametrize(("case", "num_processes"), ALL)
def test_student_is_whole_between_steps_below_stage_3_only(runs: Path, case: str, num_processes: int) -> None:
    results = json.loads((run_of(runs, case, num_processes) / "result.json").read_text())
    stage, tp_size = Case(case).layouts[-1]
    for result in results:
        whole, small = result["student_numel"], result["student_small_numel"]
        assert small < 0.1 * whole
        assert result["student_at_rest_numel"] == (small if stage == 3 else whole)
    owned = sum(result["student_owned_numel"] for result in results)
    assert owned == tp_size * results[0]["student_numel"]  # what tensor parallelism does not cut, each of its ranks has


@pytest.mark.parametrize(("case", "num_processes"), [("3,3:fp32", 1), ("3,1t2,3:fp32", 2)])
def test_a_checkpoint_of_stage_3_is_restored_exactly_at_any_layout(runs: Path, case: str, num_processes: int) -> None:
    results = json.loads((run_of(runs, case, num_processes) / "result.json").read_text())
    assert all(result["restored_exactly"] for result in results)


def test_a_start_reads_an_index_once(runs: Path) -> None:
    """It takes seconds per million samples; this run starts twice."""
    (result,) = json.loads((run_of(runs, "3,3:fp32", 1) / "result.json").read_text())
    assert result["index_reads"] == 2


def test_going_on_at_stage_3_is_the_unbroken_run_to_the_bit(runs: Path) -> None:
    unbroken, resumed = run_of(runs, "3:fp32", 1), run_of(runs, "3,3:fp32", 1)
    assert [record["loss"] for record in train_records(resumed)] == [
        record["loss"] for record in train_records(unbroken)
    ]
    for source in ("student", "teacher"):
        wanted, weights = (read_weights(locate(path), source) for path in (unbroken, resumed))  # type: ignore[arg-type]
        assert all(torch.equal(weights[name], value) for name, value in wanted.items())
