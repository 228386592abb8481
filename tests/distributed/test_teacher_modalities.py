"""Steps of three modalities, each of which uses other parameters, with blocks left out: every stage gives the same.

Gradients that one microbatch does not touch must not be those of the step before; parts of odd sizes are padded.
"""

import json
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.store import locate
from pretrain.checkpoint.weights import read_weights
from tests.distributed.launch import run_ranks

CASES = {
    1: ["0:fp32", "3:fp32", "3:fp32:offload"],
    2: [
        *("1:fp32:gathered", "2:fp32", "3:fp32", "3:fp32:resident"),
        *("1:fp32:offload", "2:fp32:offload", "3:fp32:offload", "3:bf16", "2:bf16:offload"),
    ],
}
ALL_OF_STAGE_3 = ("3:fp32", "3:fp32:resident")
ALL = [(case, size) for size, cases in CASES.items() for case in cases]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("modalities")
    for num_processes, cases in CASES.items():
        run_ranks("tests.distributed.modalities_worker", [str(out), *cases], num_processes)
    return out


def directory(runs: Path, case: str, num_processes: int) -> Path:
    return runs / f"{case.replace(':', '-')}-{num_processes}"


@pytest.mark.parametrize(("case", "num_processes"), ALL)
def test_losses_norms_and_weights_equal_one_plain_process(runs: Path, case: str, num_processes: int) -> None:
    reference, run_dir = directory(runs, "0:fp32", 1), directory(runs, case, num_processes)
    expected, seen = (json.loads((path / "result.json").read_text()) for path in (reference, run_dir))
    limit = 1e-5 if "fp32" in case else 0.02
    assert seen["losses"] == pytest.approx(expected["losses"], rel=limit)
    assert seen["norms"] == pytest.approx(expected["norms"], rel=limit)
    if "fp32" not in case:
        return
    for source in ("student", "teacher"):
        wanted, weights = (read_weights(locate(path), source) for path in (reference, run_dir))  # type: ignore[arg-type]
        assert weights.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-4, msg=f"{source}/{name}")


def test_gathered_teacher_gives_the_same_bits(runs: Path) -> None:
    gathered, resident = ((directory(runs, case, 2) / "result.json").read_text() for case in ALL_OF_STAGE_3)
    assert gathered == resident
