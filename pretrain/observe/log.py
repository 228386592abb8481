"""A run's log: console, log.txt, metrics.jsonl, TensorBoard, W&B; written by rank 0."""

import json
from pathlib import Path
from typing import Any

from pretrain.observe.console import Console, line
from pretrain.observe.sinks import JsonLines, TensorBoard, Wandb
from pretrain.sections import LoggingSection


class RunLog:
    """Everything that is reported goes through here; other ranks than the main one only report bad samples."""

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
        """Open all sinks.

        Args:
            run_dir: of the run.
            logging: what to write.
            total_steps: length of the run.
            is_main: rank 0.
            run_ids: ids under which trackers know the run; a new one is put in.
            first_step: step that the run starts or goes on from.
        """
        self._run_dir = run_dir
        self._total_steps = total_steps
        self._trackers: list[TensorBoard | Wandb] = []
        self._console: Console | None = None
        if not is_main:
            return
        self._console = Console(total_steps, first_step)
        self._records = JsonLines(run_dir / "metrics.jsonl")
        self._text = (run_dir / "log.txt").open("a", encoding="utf-8", buffering=1)
        if logging.tensorboard:
            self._trackers.append(TensorBoard(run_dir, first_step))
        if logging.wandb:
            self._trackers.append(Wandb(run_dir, logging.wandb_project, run_ids))

    def train(self, metrics: dict[str, Any]) -> None:
        """Report the figures of a log interval (names as in docs/architecture.md)."""
        if self._console is None:
            return
        self._record("train", metrics)
        self._console.progress(metrics)
        self._write(line(metrics, self._total_steps))

    def health(self, figures: dict[str, Any]) -> None:
        """Report effective ranks and spreads."""
        if self._console is None:
            return
        self._record("health", figures)
        ranks = {name.removesuffix("_effective_rank"): figures[name] for name in figures if name.endswith("_rank")}
        self._write("effective rank  " + ", ".join(f"{name} {value:.1f}" for name, value in ranks.items()))

    def event(self, step: int, name: str, message: str) -> None:
        """Report something that happens once: start, resume, checkpoint, alarm, stop, done."""
        if self._console is None:
            return
        self._records.write({"kind": "event", "step": step, "event": name, "message": message})
        self._write(f"{'ALARM' if name == 'alarm' else name}  {message}")

    def quarantine(self, reason: str) -> None:
        """Note an unusable sample; from any rank, in one append that cannot mix with others."""
        with (self._run_dir / "quarantine.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"reason": reason}) + "\n")

    def close(self) -> None:
        """Close all sinks."""
        if self._console is None:
            return
        for tracker in self._trackers:
            tracker.close()
        self._records.close()
        self._text.close()
        self._console.close()

    def _record(self, kind: str, record: dict[str, Any]) -> None:
        self._records.write({"kind": kind, **record})
        for tracker in self._trackers:
            tracker.write(kind, record)

    def _write(self, text: str) -> None:
        assert self._console is not None
        self._console.write(text)
        self._text.write(text + "\n")
