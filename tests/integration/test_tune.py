"""``d2v tune`` with real runs on two processes: what it writes, that it ends what it starts, what fails."""

import json
from pathlib import Path

import psutil
import pytest

from deploy.cli import main
from deploy.tuning.trial import Measurement, measure
from pretrain.config import with_overrides
from pretrain.parallel.deepspeed_config import read_user_json
from pretrain.recipes.registry import recipe
from pretrain.request import lay_out

CANDIDATES, STEPS = 4, 6


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, digit_shards: Path) -> Path:
    """Starts from a user's JSON."""
    out = tmp_path_factory.mktemp("tune")
    (out / "mine.json").write_text('{"zero_optimization": {"reduce_bucket_size": 1000000}}')
    arguments = [f"--data.path={digit_shards}", "--training.global-batch-size=8", "--data.num-workers=0"]
    limits = [f"--candidates={CANDIDATES}", f"--steps={STEPS}", "--cluster=2xcpu", "--calibrate"]
    given = [f"--deepspeed={out / 'mine.json'}", f"--out={out}"]
    assert main(["tune", "image-tiny", *arguments, *limits, *given]) == 0
    return out


def test_every_candidate_is_measured(tuned: Path) -> None:
    answer = json.loads((tuned / "tuning.json").read_text())
    candidates = answer["candidates"]
    assert len(candidates) == CANDIDATES and answer["unmeasured"] == 0
    assert sorted(len(one["rounds"]) for one in candidates) == [1, 1, 2, 2]
    for one in candidates:
        assert not one["problem"]
        assert [len(each["seconds"]) for each in one["rounds"]] == [STEPS, 2 * STEPS][: len(one["rounds"])]
        assert all(0 < seconds < 60 for each in one["rounds"] for seconds in each["seconds"])
    last = [one["rounds"][-1]["median_seconds"] for one in candidates[:2]]
    assert last[0] <= last[1] and answer["verdict"].startswith(f"fastest: {candidates[0]['layout']}")


def test_the_winner_can_be_started(tuned: Path) -> None:
    """Its flags and its DeepSpeed JSON agree, and the JSON has what the user's had."""
    config = with_overrides(recipe("image-tiny"), (tuned / "flags.txt").read_text().split())
    settings = json.loads((tuned / "deepspeed.json").read_text())
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1_000_000
    assert lay_out(config, 2, read_user_json(tuned / "deepspeed.json"))[1] == settings


def test_files(tuned: Path) -> None:
    assert (tuned / "tuning.png").read_bytes().startswith(b"\x89PNG")
    assert (tuned / "table.txt").read_text().count("\n") >= CANDIDATES + 2
    assert (tuned / "hardware.yaml").read_text().startswith("cpu:\n")
    assert not list(tuned.glob("trial-*/checkpoints"))


def test_nothing_is_left_running(tuned: Path) -> None:
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if str(tuned) in line]


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    found = measure(["image-tiny", f"--data.path={tmp_path}"], 1, tmp_path / "trial", steps=2, limit_seconds=120)
    assert not found.seconds and found.median == float("inf")
    assert str(tmp_path) in found.problem and "error:" in found.problem


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path, digit_shards: Path) -> None:
    found = measure(["image-tiny", f"--data.path={digit_shards}"], 1, tmp_path / "trial", steps=2, limit_seconds=0.5)
    assert found == Measurement(problem="too slow: not done after 0 s", was_ended=True)


def test_time_for_no_candidate_is_said(tmp_path: Path, digit_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``--minutes`` ends is no result: neither a table nor files of a winner."""
    given = [f"--data.path={digit_shards}", "--cluster=1xcpu", f"--out={tmp_path}", "--minutes=0.001"]
    assert main(["tune", "image-tiny", *given]) == 2
    assert "--minutes: 0.001 were over before 10 steps of one layout" in capsys.readouterr().err
    assert not (tmp_path / "flags.txt").exists()


def test_a_recipe_without_shards_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "image-tiny", "--cluster=2xcpu"]) == 2
    assert "data.path: is empty" in capsys.readouterr().err


def test_other_machines_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "image-tiny", "--cluster=2x8xH100", "--data.path=shards"]) == 2
    assert "several machines" in capsys.readouterr().err
