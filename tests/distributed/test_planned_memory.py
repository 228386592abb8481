"""What the planner expects of layouts of two processes against tensors that are alive: a benchmark, tiny recipes."""

import json

import pytest

from tests.distributed.launch import run_ranks

CASES = {
    "tensor parallel": "image-tiny --training.global-batch-size=16 --parallel.tp-size=2",
    "split rows": "image-tiny --training.global-batch-size=16 --parallel.tp-size=2 --parallel.sequence-parallel=true",
    "stages": "image-tiny --training.global-batch-size=16 --parallel.pp-size=2 --training.microbatch-size=4",
    "reduction": "image-tiny --training.global-batch-size=2 --model.image.num-views=1 --parallel.zero-stage=0 "
    "--precision.dtype=fp32",
    "stage 3": "image-tiny --training.global-batch-size=16 --parallel.zero-stage=3",
    "gathered teacher": "text-tiny --training.global-batch-size=8 --parallel.teacher=gathered",
    "recomputation": "audio-tiny --training.global-batch-size=2 --parallel.tp-size=2 --parallel.recompute=true",
}


@pytest.fixture(scope="module")
def reports() -> dict[str, dict]:
    out, _ = run_ranks("benchmarks.planned_memory", list(CASES.values()), 2)
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return dict(zip(CASES, lines, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_planned_bytes_are_those_that_are_alive(reports: dict[str, dict], case: str) -> None:
    """State to a thousandth, activations to a tenth."""
    ratios = reports[case]["planned_over_measured"]
    for part in ("student", "optimizer", "teacher"):
        assert ratios[part] == pytest.approx(1, abs=0.002), part
    assert ratios["activations"] == pytest.approx(1, abs=0.1)
