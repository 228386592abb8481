"""A non-finite gradient on one rank: all ranks skip the step, nothing is harmed; three in a row end the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.layout_worker import STEPS

SKIPPING = ["0:fp32@5", "1:bf16@5", "2:fp32@5", "1:bf16:offload@5", "2:bf16:offload@5"]
ENDING = "1:fp32@4,5,6"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digit_shards: Path) -> tuple[Path, dict[str, Any]]:
    """All cases one after the other in one pair of processes: where they ran, and what came of each."""
    directory = tmp_path_factory.mktemp("nonfinite")
    arguments = [str(digit_shards), str(directory), *SKIPPING, ENDING]
    out = run_ranks("tests.distributed.nonfinite_worker", arguments, 2)[0]
    return directory, json.loads(out[out.index("RESULT ") + len("RESULT ") :].splitlines()[0])


def skips(directory: Path, case: str) -> list[str]:
    lines = (directory / case.replace(":", "-") / "metrics.jsonl").read_text().splitlines()
    alarms = [record["message"] for record in map(json.loads, lines) if record.get("event") == "alarm"]
    return [message for message in alarms if "skipped" in message]


@pytest.mark.parametrize("case", SKIPPING)
def test_one_bad_step_is_skipped_everywhere(runs: tuple[Path, dict[str, Any]], case: str) -> None:
    directory, results = runs
    assert results[case] == {
        "step": STEPS,
        "positions": {"image": (STEPS + 1) * 8},  # one batch more than the updates needed
        "error": None,
        "finite": True,
        "teacher_finite": True,
    }
    assert len(skips(directory, case)) == 1


def test_three_in_a_row_end_the_run_with_whole_weights(runs: tuple[Path, dict[str, Any]]) -> None:
    directory, results = runs
    result = results[ENDING]
    assert result["step"] == 4
    assert "3 times in a row" in result["error"]
    assert result["finite"] and result["teacher_finite"]
    assert len(skips(directory, ENDING)) == 3
