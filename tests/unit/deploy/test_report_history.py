import json
import math
from pathlib import Path

import pytest

from deploy.report_history import History, read_history
from pretrain.errors import RunError


def train(step: int, loss: float, time: float, **more: float) -> dict:
    return {"kind": "train", "step": step, "loss": loss, "time": time, **more}


def event(step: int, name: str, time: float) -> dict:
    return {"kind": "event", "step": step, "event": name, "message": "", "time": time}


def history_of(tmp_path: Path, records: list[dict], tail: str = "") -> History:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return read_history(path)


def test_series_and_duration(tmp_path: Path) -> None:
    health = {"kind": "health", "step": 20, "student_effective_rank": 7.5, "time": 125.0}
    records = [event(0, "start", 100.0), train(10, 3.0, 110.0, loss_cls=1.0), train(20, 2.0, 120.0), health]
    history = history_of(tmp_path, records)
    assert history.series("loss") == ([10, 20], [3.0, 2.0])
    assert history.series("loss_cls") == ([10], [1.0])
    assert history.series("student_effective_rank") == ([20], [7.5])
    assert history.series("unknown") == ([], [])
    assert history.names("loss") == ["loss", "loss_cls"]
    assert history.duration_seconds == 25.0
    assert history.num_unreadable == 0


def test_resume_replaces_what_was_lost(tmp_path: Path) -> None:
    """Killed at step 30, resumed from 10, stopped at 20: step 30 was of weights that are gone; the pause is no work."""
    first = [event(0, "start", 0.0), train(10, 5.0, 10.0), train(20, 4.0, 20.0), train(30, 3.0, 30.0)]
    second = [event(10, "resume", 1000.0), train(20, 4.5, 1010.0)]
    history = history_of(tmp_path, first + second)
    assert history.series("loss") == ([10, 20], [5.0, 4.5])
    assert [item["event"] for item in history.events] == ["start", "resume"]
    assert history.duration_seconds == 40.0


def test_later_of_two_lines_wins(tmp_path: Path) -> None:
    history = history_of(tmp_path, [train(10, 5.0, 1.0), train(20, 4.0, 2.0), train(10, 6.0, 3.0)])
    assert history.series("loss") == ([10, 20], [6.0, 4.0])


@pytest.mark.parametrize("tail", ['{"kind": "train", "st', '{"kind": "train", "step": 20, "loss": ', "[1]\n", "\x00\n"])
def test_torn_line_is_left_out(tmp_path: Path, tail: str) -> None:
    history = history_of(tmp_path, [train(10, 5.0, 1.0)], tail)
    assert history.series("loss") == ([10], [5.0])
    assert history.num_unreadable == 1


def test_torn_line_in_the_middle(tmp_path: Path) -> None:
    """A killed process's half line, to which the resumed one appends its first."""
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(train(10, 5.0, 1.0)) + "\n"
    path.write_text(whole + '{"kind": "tr' + whole + json.dumps(train(20, 4.0, 2.0)) + "\n")
    history = read_history(path)
    assert history.series("loss") == ([10, 20], [5.0, 4.0])
    assert history.num_unreadable == 1


def test_not_a_number_is_kept_as_a_gap(tmp_path: Path) -> None:
    steps, values = history_of(tmp_path, [train(10, math.nan, 1.0), train(20, 4.0, 2.0)]).series("loss")
    assert steps == [10, 20] and math.isnan(values[0]) and values[1] == 4.0


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="metrics.jsonl: no such file; is .* the directory of a run"):
        read_history(tmp_path / "metrics.jsonl")
    with pytest.raises(RunError, match="metrics.jsonl: holds no training step yet"):
        history_of(tmp_path, [event(0, "start", 0.0)])
