"""A non-finite gradient on one rank: all ranks skip the step, nothing is harmed; three in a row end the run."""

import json
from pathlib import Path

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.layout_worker import STEPS


def run(shards: Path, run_dir: Path, case: str, poisoned: list[int]) -> tuple[dict, list[str]]:
    arguments = [str(shards), str(run_dir), case, *map(str, poisoned)]
    out = run_ranks("tests.distributed.nonfinite_worker", arguments, 2)[0]
    result = json.loads(out[out.index("RESULT ") + len("RESULT ") :].splitlines()[0])
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return result, [record["message"] for record in records if record.get("event") == "alarm"]


@pytest.mark.parametrize("case", ["0:fp32", "1:bf16", "2:fp32"])
def test_one_bad_step_is_skipped_everywhere(tmp_path: Path, digit_shards: Path, case: str) -> None:
    result, alarms = run(digit_shards, tmp_path / "run", case, [5])
    assert result == {
        "step": STEPS,
        "positions": {"image": (STEPS + 1) * 8},  # one batch more than the updates needed
        "error": None,
        "finite": True,
        "teacher_finite": True,
    }
    assert len([message for message in alarms if "skipped" in message]) == 1


def test_three_in_a_row_end_the_run_with_whole_weights(tmp_path: Path, digit_shards: Path) -> None:
    result, alarms = run(digit_shards, tmp_path / "run", "1:fp32", [4, 5, 6])
    assert result["step"] == 4
    assert "3 times in a row" in result["error"]
    assert result["finite"] and result["teacher_finite"]
    assert len([message for message in alarms if "skipped" in message]) == 3
