"""One candidate for some real steps: a run of ``d2v train`` that is ended as soon as it has been measured."""

import os
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.launch.local import clean_environment, command_here
from deploy.launch.supervise import kill_session
from pretrain.observe.records import Record, read_records

NEVER = 1_000_000_000
"""Steps between what a trial shall not do."""
QUIET = (
    f"--training.max-steps={NEVER}",
    "--logging.every-steps=1",
    "--logging.tensorboard=false",
    "--logging.wandb=false",
    f"--checkpoint.every-steps={NEVER}",
    f"--health.every-steps={NEVER}",
)
OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|can't allocate memory|Cannot allocate memory", re.IGNORECASE
)
POLL_SECONDS = 0.05
WARM_UP = 3
"""Steps that are not counted: the first ones allocate, and wait for the loader's workers."""


@dataclass(frozen=True)
class Measurement:
    """What a trial gave."""

    seconds: tuple[float, ...] = ()
    """Of every step that counts."""
    memory_gib: float | None = None
    """Peak of rank 0."""
    problem: str = ""
    """Why there are no seconds: ``out of memory``, ``too slow``, or what the run said."""
    was_ended: bool = False
    """Whether it was under way when its time was up."""

    @property
    def median(self) -> float:
        """Seconds of a typical step; infinite if there is none."""
        return statistics.median(self.seconds) if self.seconds else float("inf")

    @property
    def error(self) -> float:
        """Standard error of the median, from the spread of the middle half of the steps."""
        if len(self.seconds) < 2:
            return self.median
        first, _, third = statistics.quantiles(self.seconds, n=4)
        return 1.2533 * (third - first) / 1.349 / len(self.seconds) ** 0.5  # both factors are those of a normal spread


def measure(
    arguments: Sequence[str], num_processes: int, run_dir: Path, *, steps: int, limit_seconds: float
) -> Measurement:
    """Run ``d2v train ARGUMENTS`` until ``steps`` steps count, then end it without a checkpoint.

    Args:
        arguments: recipe and fields.
        num_processes: of this machine.
        run_dir: is emptied before and removed after, its output but for ``trial.log``.
        steps: that count, after a few that do not.
        limit_seconds: for all of it, start included.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    command = command_here(["train", *arguments, f"--run-dir={run_dir}", *QUIET], num_processes)
    log = run_dir / "trial.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env=clean_environment(os.environ) | {"DEEPSPEED_LOG_LEVEL": "error"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        records = _wait(process, run_dir / "metrics.jsonl", WARM_UP + steps, time.monotonic() + limit_seconds)
        ended = process.poll()
    finally:
        end(process)
    counted = records[WARM_UP : WARM_UP + steps]
    if len(counted) == steps:
        return Measurement(
            tuple(record["seconds_per_step"] for record in counted), max(record["memory_gib"] for record in counted)
        )
    said = log.read_text(encoding="utf-8", errors="replace")
    return Measurement(problem=problem_of(said, ended, limit_seconds), was_ended=ended is None)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what a trial started: its launcher, ranks and loaders, all in one session of their own."""
    kill_session(process.pid)
    process.wait()


def _wait(process: subprocess.Popen[bytes], metrics: Path, wanted: int, deadline: float) -> list[Record]:
    """Until there are enough steps, or the run has ended, or time is up."""
    while True:
        has_ended = process.poll() is not None  # before reading, so that nothing it wrote is missed
        records = _train_records(metrics)
        if len(records) >= wanted or has_ended or time.monotonic() > deadline:
            return records
        time.sleep(POLL_SECONDS)


def _train_records(path: Path) -> list[Record]:
    if not path.exists():
        return []
    return [record for record in read_records(path) if record is not None and record["kind"] == "train"]


def problem_of(said: str, status: int | None, limit_seconds: float) -> str:
    """Why a trial has no seconds, from its output and its exit status; None if it was still running."""
    if OUT_OF_MEMORY.search(said) or status == -signal.SIGKILL:
        return "out of memory"
    if status is None:
        return f"too slow: not done after {limit_seconds:.0f} s"
    errors = [line for line in said.splitlines() if "error:" in line.lower()]
    return errors[-1].strip() if errors else f"ended with status {status}; see its trial.log"
