"""What a check found, and how it is shown. No torch."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, TextIO

from deploy.progress import counted

Level = Literal["ok", "absent", "warning", "error"]
_SYMBOLS: dict[Level, tuple[str, str, str]] = {  # on a terminal with its colour, and as plain text
    "ok": ("✓", "32", "ok"),
    "absent": ("·", "2", "-"),
    "warning": ("!", "33", "warning"),
    "error": ("✗", "31", "ERROR"),
}
_NAME_WIDTH = 16


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    level: Level
    """``absent``: not here, and nothing is wrong with that."""
    detail: str
    fix: str = ""
    """What to do about a warning or an error."""


def failed(findings: Iterable[Finding]) -> bool:
    """Whether there is an error among them."""
    return any(finding.level == "error" for finding in findings)


def show(name: str, finding: Finding, stream: TextIO) -> None:
    """Write one row, and its fix below it."""
    symbol, colour, word = _SYMBOLS[finding.level]
    mark = f"\x1b[{colour}m{symbol}\x1b[0m" if stream.isatty() else f"{word:<7}"
    indent = 3 if stream.isatty() else 9
    stream.write(f"{mark}  {name:<{_NAME_WIDTH}}{finding.detail}\n")
    if finding.fix:
        stream.write(f"{'':<{indent + _NAME_WIDTH}}-> {finding.fix}\n")
    stream.flush()


def summary(findings: Iterable[Finding]) -> str:
    """How many rows are of which level."""
    levels = [finding.level for finding in findings]
    errors, warnings = counted(levels.count("error"), "error"), counted(levels.count("warning"), "warning")
    return f"{len(levels)} checks: {errors}, {warnings}"


def as_json(rows: dict[str, Finding], **more: object) -> str:
    """All rows as one JSON object; ``healthy`` is false if one is an error."""
    checks = [{"name": name, **asdict(finding)} for name, finding in rows.items()]
    return json.dumps({"healthy": not failed(rows.values()), **more, "checks": checks}, indent=2)
