"""A disk without room, /dev/full, under what a run's log writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.pretrain.test_log import PROGRAM, health, lines, metrics, open_log, strict

FILES = ("metrics.jsonl", "log.txt", "quarantine.jsonl")


def test_a_full_disk_is_one_alarm_per_file_and_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = open_log(tmp_path)
    log.train(metrics(1))
    log.quarantine("a.tar: 0006: not an image")
    for name in FILES:
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/dev/full")
    for step in (2, 3):
        log.train(metrics(step))
        log.health(health(step))
        log.quarantine("a.tar: 0007: not an image")
    shown = capsys.readouterr().err
    for name in FILES:
        assert shown.count(f"!!! ALARM  {name} lacks lines from here on: No space left on device") == 1, shown
        (tmp_path / name).unlink()
    log.train(metrics(4))  # there is room again
    log.quarantine("b.tar: 0008: not an image")
    log.close()
    assert [strict(line)["step"] for line in lines(tmp_path / "metrics.jsonl")] == [4]
    assert len(lines(tmp_path / "log.txt")) == len(lines(tmp_path / "quarantine.jsonl")) == 1


def test_other_ranks_warn_on_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "quarantine.jsonl").symlink_to("/dev/full")
    log = open_log(tmp_path, is_main=False)
    for _ in range(2):
        log.quarantine("a.tar: 0007: not an image")
    assert capsys.readouterr().err == "quarantine.jsonl lacks lines from here on: No space left on device\n"


def test_a_full_disk_under_the_output_ends_nothing(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], stderr=full, timeout=60)
    records = [strict(line) for line in lines(tmp_path / "metrics.jsonl")]
    assert [record["step"] for record in records if record["kind"] == "train"] == [20, 30, 40]
