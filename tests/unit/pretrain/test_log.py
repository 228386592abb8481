"""The run's log with its real sinks: files, a terminal, TensorBoard, W&B offline."""

import json
import math
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from deploy.report_history import read_history
from pretrain.observe.console import duration
from pretrain.observe.log import RunLog
from pretrain.sections import LoggingSection

REPOSITORY = Path(__file__).parents[3]
SILENT = LoggingSection(tensorboard=False)


def metrics(step: int, **changes: float) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 1 / step,
        "loss_regression": 0.75 / step,
        "loss_cls": 0.25 / step,
        "lr": 1e-3,
        "grad_norm": 2.5,
        "ema_decay": 0.9998,
        "target_spread": 0.5,
        "prediction_spread": 0.25,
        "samples_per_second": 1234.5,
        "images_per_second": 1234.5,
        "tflops_per_second": 0.0123,
        "memory_gib": 1.5,
        "data_wait_share": 0.07,
        "seconds_per_step": 0.2,
        "eta_seconds": 3725.0,
    } | changes


def health(step: int) -> dict[str, Any]:
    return {"step": step, "student_effective_rank": 12.34, "student_spread": 0.5}


def open_log(run_dir: Path, logging: LoggingSection = SILENT, **changes: Any) -> RunLog:
    arguments: dict[str, Any] = {"total_steps": 1000, "is_main": True, "run_ids": {}, "first_step": 0}
    return RunLog(run_dir, logging, **(arguments | changes))


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def strict(line: str) -> dict[str, Any]:
    """Parse JSON as the standard has it: Python would also take NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return dict(json.loads(line, parse_constant=refuse))


def test_records_have_the_agreed_form(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.event(0, "start", "image-tiny on 2 x cpu")
    log.train(metrics(7))
    log.health(health(7))
    log.close()
    records = [strict(line) for line in lines(tmp_path / "metrics.jsonl")]
    times = [record.pop("time") for record in records]
    assert times == sorted(times) and times[0] > 1.7e9
    assert records == [
        {"kind": "event", "step": 0, "event": "start", "message": "image-tiny on 2 x cpu"},
        {"kind": "train", **metrics(7)},
        {"kind": "health", **health(7)},
    ]


def test_text_log_is_readable_and_dated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = open_log(tmp_path)
    log.train(metrics(7))
    log.health(health(7))
    log.event(7, "checkpoint", "runs/x")
    log.event(7, "alarm", "collapsed")
    log.close()
    console = capsys.readouterr().err.splitlines()
    assert console[0] == (
        "step    7/1000  loss   0.1429 (regression 0.1071, cls 0.0357)  lr 1.00e-03  grad   2.500  ema 0.999800"
        "  spread of targets 0.500, predictions 0.250   1234.5 images/s    0.0123 TFLOP/s    1.50 GiB  wait   7 %"
        "  eta 1:02:05"
    )
    assert console[1:] == [
        "step    7/1000  effective rank: student 12.3  spread: student 0.5",
        "step    7/1000  checkpoint  runs/x",
        "step    7/1000  !!! ALARM  collapsed",
    ]
    dated = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.*)", line) for line in lines(tmp_path / "log.txt")]
    assert [match and match[1] for match in dated] == console


def test_a_run_over_several_modalities_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = metrics(7)
    for name in ("loss_regression", "loss_cls", "target_spread", "prediction_spread"):
        del one[name]
    several = {
        "loss_image": 0.5,
        "loss_text": 0.25,
        "loss_image_regression": 0.375,
        "loss_image_cls": 0.125,
        "loss_text_regression": 0.25,
        "image_target_spread": 0.75,
        "image_prediction_spread": 0.5,
        "text_target_spread": 0.25,
        "text_prediction_spread": 0.125,
        "text_tokens_per_second": 321.0,
    }
    log = open_log(tmp_path)
    log.train(one | several | {"loss": 0.75})
    log.health({"step": 7, "image_student_effective_rank": 12.34, "text_student_effective_rank": 5.6})
    log.close()
    train, health_line = capsys.readouterr().err.splitlines()
    assert "  loss   0.7500 (image 0.5000, text 0.2500)  lr " in train
    assert "spread of image targets 0.750, predictions 0.500; text targets 0.250, predictions 0.125  " in train
    assert " 1234.5 images/s,   321.0 tokens/s " in train
    assert health_line.startswith("step    7/1000  effective rank: image_student 12.3, text_student 5.6")


def test_lines_of_different_steps_are_aligned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = open_log(tmp_path)
    log.train(metrics(1, eta_seconds=9.0))
    log.train(metrics(1000, eta_seconds=9.0, tflops_per_second=123.4, images_per_second=9.9, data_wait_share=1.0))
    log.close()
    first, last = capsys.readouterr().err.splitlines()
    for name in ("loss", "lr", "grad", "ema", "images/s", "TFLOP/s", "GiB", "wait", "eta"):
        assert first.index(name) == last.index(name), name


def test_non_finite_numbers_stay_valid_json_and_reach_the_report_as_gaps(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.train(metrics(1, loss=math.nan, grad_norm=math.inf))
    log.train(metrics(2))
    log.close()
    first = strict(lines(tmp_path / "metrics.jsonl")[0])
    assert first["loss"] is None and first["grad_norm"] is None and first["lr"] == 1e-3
    steps, losses = read_history(tmp_path / "metrics.jsonl").series("loss")
    assert steps == [1, 2] and math.isnan(losses[0]) and losses[1] == 0.5


def test_a_torn_line_harms_no_other(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.train(metrics(1))
    log.train(metrics(2))
    log.close()
    for name in ("metrics.jsonl", "log.txt"):
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 9)
    log = open_log(tmp_path, first_step=1)
    log.event(1, "resume", "here")
    log.train(metrics(2))
    log.close()
    history = read_history(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in history.train] == [1, 2]
    assert (history.num_unreadable, [event["event"] for event in history.events]) == (1, ["resume"])
    assert "here" in lines(tmp_path / "log.txt")[2] and "  step " in lines(tmp_path / "log.txt")[2]


def test_whole_lines_are_continued_without_a_gap(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        log = open_log(tmp_path, first_step=step - 1)
        log.train(metrics(step))
        log.close()
    assert [strict(line)["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert len(lines(tmp_path / "log.txt")) == 3


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    """A killed run keeps all but the line being written."""
    log = open_log(tmp_path)
    log.train(metrics(1))
    assert len(lines(tmp_path / "metrics.jsonl")) == len(lines(tmp_path / "log.txt")) == 1
    log.close()


def test_other_ranks_only_report_bad_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_ids: dict[str, str] = {}
    log = open_log(tmp_path, LoggingSection(wandb=True), is_main=False, run_ids=run_ids)
    log.train(metrics(1))
    log.health(health(1))
    log.event(1, "alarm", "x")
    log.quarantine("a.tar: 0007: not an image")
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.jsonl"]
    assert capsys.readouterr() == ("", "") and run_ids == {}
    main = open_log(tmp_path)
    main.quarantine("b.tar: “quoted”\nand broken")
    main.close()
    reasons = [strict(line)["reason"] for line in lines(tmp_path / "quarantine.jsonl")]
    assert reasons == ["a.tar: 0007: not an image", "b.tar: “quoted”\nand broken"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (61, "0:01:01"), (3725, "1:02:05"), (90_061, "1d 1:01:01")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- TensorBoard


def scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_shows_every_number(tmp_path: Path) -> None:
    log = open_log(tmp_path, LoggingSection(tensorboard=True))
    log.train(metrics(5))
    log.health(health(5))
    log.close()
    for kind, record in (("train", metrics(5)), ("health", health(5))):
        for name, value in record.items():
            if name != "step":
                assert scalars(tmp_path, f"{kind}/{name}") == [(5, pytest.approx(value, rel=1e-6))], name


@pytest.mark.parametrize("first_step", [0, 10])
def test_tensorboard_hides_what_a_killed_run_measured_after_its_checkpoint(tmp_path: Path, first_step: int) -> None:
    logging = LoggingSection(tensorboard=True)
    log = open_log(tmp_path, logging)
    for step in (1, 10, 11, 14):
        log.train(metrics(step, loss=1.0))
    log.close()
    log = open_log(tmp_path, logging, first_step=first_step)
    log.train(metrics(12, loss=2.0))
    log.close()
    kept = [(step, 1.0) for step in (1, 10) if step <= first_step]
    assert scalars(tmp_path, "train/loss") == [*kept, (12, 2.0)]


# --- what is printed: a terminal gets a bar, everything else plain lines

PROGRAM = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
from tests.unit.pretrain.test_log import metrics, open_log
log = open_log(Path(sys.argv[1]), total_steps=40, first_step=10)
for step in (20, 30, 40):
    log.train(metrics(step))
    if step == 30:
        log.event(step, "alarm", "collapsed")
log.close()
"""


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "" and "\r" not in result.stderr and "\x1b" not in result.stderr
    assert [line[:24] for line in result.stderr.splitlines()] == [
        "step 20/40  loss   0.050",
        "step 30/40  loss   0.033",
        "step 30/40  !!! ALARM  c",
        "step 40/40  loss   0.025",
    ]


def test_a_terminal_gets_a_bar_under_the_lines(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (30, 100))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stderr=end)
    os.close(end)
    shown = read_all(terminal)
    assert process.wait(timeout=60) == 0, shown
    assert "40/40" in shown and "100%|" in shown, shown
    assert "loss=" not in shown and "loss 0.025, 1234.5 images/s" in shown
    assert re.search(r"25%\|[^\r]*\| 10/40 ", shown), "the bar starts where the run goes on"
    whole = [line for line in re.split(r"[\r\n]+", shown) if line.startswith("step")]
    assert [line[:12] for line in whole] == ["step 20/40  ", "step 30/40  ", "step 30/40  ", "step 40/40  "]
    assert whole[2] == "step 30/40  !!! ALARM  collapsed"


def read_all(descriptor: int) -> str:
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # Linux says so when the other end is closed
            chunk = b""
        if not chunk:
            os.close(descriptor)
            return b"".join(chunks).decode()
        chunks.append(chunk)


# --- W&B, in processes of their own: it keeps a helper process

WANDB_PROGRAM = f"""
import json, os, signal, subprocess, sys
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
from pretrain.sections import LoggingSection
from tests.unit.pretrain.test_log import metrics, open_log

run_dir = Path(sys.argv[1])
first, last = int(sys.argv[3]), int(sys.argv[4])
run_ids = json.loads(sys.argv[2])
logging = LoggingSection(wandb=True, tensorboard=False, wandb_project="digits")
log = open_log(run_dir, logging, run_ids=run_ids, first_step=first)
for step in range(first + 1, last + 1):
    log.train(metrics(step))
    if "kill-helper" in sys.argv:
        helpers = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True)
        for helper in helpers.stdout.split():
            os.kill(int(helper), signal.SIGKILL)
log.close()
print(json.dumps(run_ids))
"""


def wandb_run(run_dir: Path, run_ids: dict[str, str], first: int, last: int, *extra: str, **env: str) -> Any:
    home = run_dir / "home"  # without credentials
    home.mkdir(exist_ok=True)
    nowhere = "http://127.0.0.1:9"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    return subprocess.run(
        [sys.executable, "-c", WANDB_PROGRAM, str(run_dir), json.dumps(run_ids), str(first), str(last), *extra],
        env=clean | {"HOME": str(home), "HTTPS_PROXY": nowhere, "HTTP_PROXY": nowhere, "ALL_PROXY": nowhere} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def wandb_history(run_dir: Path, run_id: str) -> list[dict[str, Any]]:
    """What the offline files of a run hold: a header of 7 bytes, then per record crc (4), size (2), type (1)."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for path in sorted(run_dir.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")):
        content, place = path.read_bytes(), 7
        assert len(content) < 32_768, "one block"
        while place < len(content):
            size = int.from_bytes(content[place + 4 : place + 6], "little")
            record = Record.FromString(content[place + 7 : place + 7 + size])
            place += 7 + size
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                rows.append(items)
    return rows


def test_wandb_without_credentials_is_offline_and_keeps_its_id_over_a_resume(tmp_path: Path) -> None:
    first = wandb_run(tmp_path, {}, 0, 2)
    assert first.returncode == 0, first.stderr
    run_ids = json.loads(first.stdout)
    assert list(run_ids) == ["wandb"] and run_ids["wandb"]
    second = wandb_run(tmp_path, run_ids, 2, 3, WANDB_MODE="offline")
    assert json.loads(second.stdout) == run_ids
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{run_ids['wandb']}"))) == 2
    rows = wandb_history(tmp_path, run_ids["wandb"])
    assert [(row["_step"], row["train/loss"]) for row in rows] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert "step" not in rows[0] and rows[0]["train/grad_norm"] == 2.5


def test_the_run_outlives_a_tracker(tmp_path: Path) -> None:
    """W&B's helper process is killed, for memory say: one alarm, and everything else goes on."""
    result = wandb_run(tmp_path, {}, 0, 4, "kill-helper")
    assert result.returncode == 0, result.stderr
    records = [strict(line) for line in lines(tmp_path / "metrics.jsonl")]
    assert [record["step"] for record in records if record["kind"] == "train"] == [1, 2, 3, 4]
    alarms = [record["message"] for record in records if record["kind"] == "event"]
    assert len(alarms) == 1 and alarms[0].startswith("Wandb gets no more metrics: "), alarms


@pytest.mark.parametrize("mode", ["bogus", "online"])
def test_wandb_that_cannot_work_is_one_clear_error_at_the_start(tmp_path: Path, mode: str) -> None:
    result = wandb_run(tmp_path, {}, 0, 1, WANDB_MODE=mode)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("pretrain.errors.RunError: logging.wandb: ") and "WANDB_MODE=offline" in last, result.stderr
