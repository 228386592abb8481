"""Read a run's metrics.jsonl into one history: what the surviving steps measured, and what happened on the way."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.errors import RunError
from pretrain.observe.records import Record, read_records


@dataclass
class History:
    """The lines of metrics.jsonl by kind."""

    train: list[Record] = field(default_factory=list)
    """Log lines, one per step, ascending."""
    health: list[Record] = field(default_factory=list)
    """Spread and effective rank, one per step, ascending."""
    events: list[Record] = field(default_factory=list)
    """Starts, resumes, checkpoints, alarms, stops: all of them, in the order in which they happened."""
    duration_seconds: float = 0.0
    """Time spent in the run, without the pauses between a stop and the next resume."""
    num_unreadable: int = 0
    """Lines that are not a record: a killed process leaves a torn one."""

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a measurement, wherever it is recorded; empty if nowhere."""
        points = [(record["step"], record[name]) for record in self.train + self.health if name in record]
        return [step for step, _ in points], [math.nan if value is None else float(value) for _, value in points]

    def names(self, prefix: str) -> list[str]:
        """Measurements of the train lines whose name starts with ``prefix``, in their order of appearance."""
        return list(dict.fromkeys(name for record in self.train for name in record if name.startswith(prefix)))


def read_history(path: Path) -> History:
    """Read metrics.jsonl.

    After a resume the run goes on from an earlier step: what had been measured beyond that step is of weights that
    no longer exist and is dropped; of two lines for one step the later wins.

    Raises:
        RunError: if the file is missing or holds no train line.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file; is {path.parent} the directory of a run that has started?")
    history = History()
    by_kind: dict[str, dict[int, Record]] = {"train": {}, "health": {}}
    session_times: list[float] = []
    for record in read_records(path):
        if record is None:
            history.num_unreadable += 1
            continue
        kind, step = record["kind"], record["step"]
        if kind == "event":
            history.events.append(record)
            if record.get("event") in ("start", "resume"):
                history.duration_seconds += _span(session_times)
                session_times = []
                for records in by_kind.values():
                    _drop_after(records, step)
        elif kind in by_kind:
            by_kind[kind][step] = record
        session_times.append(record.get("time", math.nan))
    history.duration_seconds += _span(session_times)
    history.train = [record for _, record in sorted(by_kind["train"].items())]
    history.health = [record for _, record in sorted(by_kind["health"].items())]
    if not history.train:
        raise RunError(f"{path}: holds no training step yet; the first is written after logging.every_steps steps")
    return history


def _drop_after(records: dict[int, Record], step: int) -> None:
    for late in [other for other in records if other > step]:
        del records[late]


def _span(times: list[float]) -> float:
    known = [time for time in times if not math.isnan(time)]
    return max(known) - min(known) if known else 0.0
