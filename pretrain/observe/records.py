"""The lines of a run's metrics.jsonl, read back. No torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(path: Path) -> Iterator[Record | None]:
    """Every line in its order; None for one that is no record: a killed process leaves a torn one, a live one grows.

    Args:
        path: of the file; may be written meanwhile.
    Yields:
        What ``pretrain.observe.log.RunLog`` wrote: at least a ``kind`` (text) and a ``step``.
    Raises:
        FileNotFoundError: if there is none.
    """
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        yield _parse(line)


def _parse(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if isinstance(record, dict) and isinstance(record.get("kind"), str) and isinstance(record.get("step"), int):
        return record
    return None
