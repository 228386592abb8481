"""A run's log: console, log.txt, metrics.jsonl, TensorBoard, W&B; written by rank 0."""

import contextlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.observe.console import Console, event_line, health_line, train_line
from pretrain.observe.sinks import TensorBoard, Tracker, Wandb, append_line, json_line
from pretrain.sections import LoggingSection


class RunLog:
    """Everything that is reported goes through here; other ranks than the main one only report bad samples.

    metrics.jsonl only grows: a run that goes on from an earlier step measures some steps again, and readers take
    the later line. docs/architecture.md names the fields. Nothing that cannot be written ends the run: one alarm,
    then on with what still works.
    """

    def __init__(
        self,
        run_dir: Path,
        logging: LoggingSection,
        *,
        total_steps: int,
        is_main: bool,
        run_ids: dict[str, str],
        first_step: int,
    ) -> None:
        """Start all sinks.

        Args:
            run_dir: of the run.
            logging: what to write.
            total_steps: length of the run.
            is_main: rank 0.
            run_ids: ids under which trackers know the run; a new one is put in.
            first_step: step that the run starts or goes on from.
        Raises:
            RunError: if W&B is wanted and cannot be used.
        """
        self._run_dir = run_dir
        self._is_main = is_main
        self._failing: set[str] = set()
        if not is_main:
            return
        self._total_steps = total_steps
        self._last_step = first_step
        self._trackers: list[Tracker] = []
        if logging.tensorboard:
            self._trackers.append(TensorBoard(run_dir, first_step))
        if logging.wandb:
            self._trackers.append(Wandb(run_dir, logging.wandb_project, run_ids))
        self._console = Console(total_steps, first_step)

    def train(self, metrics: dict[str, Any]) -> None:
        """Report the figures of a log interval."""
        if self._is_main:
            with contextlib.suppress(OSError):
                self._console.progress(metrics)
            self._write(metrics["step"], train_line(metrics))
            self._record("train", metrics)

    def health(self, figures: dict[str, Any]) -> None:
        """Report effective ranks and spreads."""
        if self._is_main:
            self._write(figures["step"], health_line(figures))
            self._record("health", figures)

    def event(self, step: int, name: str, message: str) -> None:
        """Report something that happens once: start, resume, checkpoint, alarm, stop, done."""
        if self._is_main:
            record = {"kind": "event", "step": step, "event": name, "message": message}
            self._append("metrics.jsonl", json_line(record))
            self._write(step, event_line(name, message))

    def quarantine(self, reason: str) -> None:
        """Note an unusable sample in quarantine.jsonl; from any rank."""
        self._append("quarantine.jsonl", json_line({"reason": reason}))

    def close(self) -> None:
        """Close all sinks."""
        if self._is_main:
            for tracker in self._trackers.copy():
                self._contain(tracker, tracker.close)
            with contextlib.suppress(OSError):
                self._console.close()

    def _record(self, kind: str, record: dict[str, Any]) -> None:
        self._append("metrics.jsonl", json_line({"kind": kind, **record}))
        for tracker in self._trackers.copy():
            self._contain(tracker, partial(tracker.write, kind, record))

    def _append(self, name: str, line: str) -> None:
        """Append to a file of the run; warn where lines begin to be missing."""
        try:
            append_line(self._run_dir / name, line)
        except OSError as error:
            if name not in self._failing:
                self._failing.add(name)
                self._warn(f"{name} lacks lines from here on: {error.strerror}")
        else:
            self._failing.discard(name)

    def _warn(self, reason: str) -> None:
        if self._is_main:
            self.event(self._last_step, "alarm", reason)
        else:
            with contextlib.suppress(OSError):
                print(reason, file=sys.stderr, flush=True)

    def _contain(self, tracker: Tracker, action: Callable[[], None]) -> None:
        """Give up a tracker that fails, whatever it dies of (W&B's helper process, say): the run is worth more."""
        try:
            action()
        except Exception as error:
            self._trackers.remove(tracker)
            reason = f"{type(tracker).__name__} gets no more metrics: {type(error).__name__}: {error}"
            self._warn(reason)

    def _write(self, step: int, text: str) -> None:
        self._last_step = step
        line = f"step {step:>{len(str(self._total_steps))}}/{self._total_steps}  {text}"
        with contextlib.suppress(OSError):  # there is no one left to tell
            self._console.write(line)
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}")
