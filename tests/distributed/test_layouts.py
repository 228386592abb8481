"""ZeRO 0, 1 and 2 on one and two processes: the same losses, norms and weights; the teacher is exact and sharded."""

import json
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.store import locate
from pretrain.checkpoint.weights import read_weights
from tests.distributed.launch import run_ranks, train_records
from tests.distributed.layout_worker import STEPS

CASES = ["0:fp32", "1:fp32", "2:fp32", "0:bf16", "1:bf16", "2:bf16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digit_shards: Path) -> Path:
    out = tmp_path_factory.mktemp("layouts")
    for num_processes in (1, 2):
        run_ranks("tests.distributed.layout_worker", [str(digit_shards), str(out), *CASES], num_processes)
    return out


def relative(a: float, b: float) -> float:
    return abs(a - b) / abs(b)


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_fp32_equals_one_plain_process(runs: Path, stage: int, num_processes: int) -> None:
    reference = train_records(runs / "zero0-fp32-1")
    seen = train_records(runs / f"zero{stage}-fp32-{num_processes}")
    assert len(seen) == len(reference) == STEPS
    for expected, record in zip(reference, seen, strict=True):
        for name in ("loss", "loss_regression", "loss_cls", "grad_norm", "target_spread", "prediction_spread"):
            limit = 1e-5 if name.startswith("loss") else 1e-4
            assert relative(record[name], expected[name]) < limit, (name, record["step"])
    expected_weights = read_weights(locate(runs / "zero0-fp32-1"), "student")
    weights = read_weights(locate(runs / f"zero{stage}-fp32-{num_processes}"), "student")
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_bf16_stays_near_fp32(runs: Path, stage: int, num_processes: int) -> None:
    reference = train_records(runs / "zero0-fp32-1")
    seen = train_records(runs / f"zero{stage}-bf16-{num_processes}")
    worst = max(relative(record["loss"], expected["loss"]) for expected, record in zip(reference, seen, strict=True))
    assert 0 < worst < 0.02


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_teacher_is_exact_and_every_rank_holds_its_share(runs: Path, case: str, num_processes: int) -> None:
    stage, dtype = case.split(":")
    results = json.loads((runs / f"zero{stage}-{dtype}-{num_processes}" / "result.json").read_text())
    assert len(results) == num_processes
    for result in results:
        assert result["ema_error"] < 1e-6
        assert result["gather_error"] == 0.0
        padding_bytes = 4 * 4 * num_processes
        assert 0 <= result["shard_bytes"] - 4 * result["teacher_numel"] / num_processes <= padding_bytes
