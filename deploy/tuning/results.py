"""What a tuning found: a table, JSON and a picture."""

import json
from pathlib import Path
from typing import Any

from data_pipelines.atomic import replacing
from deploy.plan.plan import Plan
from deploy.plan.table import describe, figures
from deploy.tuning.halving import Standing, told_apart

COLUMNS = ("", "layout", "steps", "measured", "+-", "planned", "memory of rank 0")


def as_text(standings: list[Standing[Plan]], unmeasured: int) -> str:
    """The table, and how sure its first line is."""
    rows = [COLUMNS, *(_row(number, one) for number, one in enumerate(standings, 1))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", verdict(standings)]
    lines += [f"{describe(one.candidate)}: {one.last.problem}" for one in standings if not one.last.seconds]
    if unmeasured:
        lines.append(f"time was up before {unmeasured} of the candidates were measured")
    return "\n".join(lines)


def verdict(standings: list[Standing[Plan]]) -> str:
    """Whether the winner stands out."""
    best, *others = standings
    if not best.last.seconds:
        return "no candidate ran"
    close = [one for one in others if one.last.seconds and not told_apart(best.last, one.last)]
    if not close:
        return f"fastest: {describe(best.candidate)}"
    names = "; ".join(describe(one.candidate) for one in close)
    return f"fastest: {describe(best.candidate)}; within noise of it: {names}"


def as_json(standings: list[Standing[Plan]], unmeasured: int) -> dict[str, Any]:
    """Everything."""
    return {
        "verdict": verdict(standings),
        "unmeasured": unmeasured,
        "candidates": [
            {
                "layout": describe(one.candidate),
                "problem": one.last.problem,
                "planned": figures(one.candidate),
                "rounds": [
                    {
                        "median_seconds": each.median if each.seconds else None,
                        "seconds": each.seconds,
                        "memory_gib": each.memory_gib,
                    }
                    for each in one.rounds
                ],
            }
            for one in standings
        ],
    }


def write(out: Path, standings: list[Standing[Plan]], unmeasured: int) -> None:
    """Write ``table.txt``, ``tuning.json`` and ``tuning.png``."""
    text = json.dumps(as_json(standings, unmeasured), indent=2)
    for name, content in (("table.txt", as_text(standings, unmeasured)), ("tuning.json", text)):
        with replacing(out / name) as stream:
            stream.write(content.encode() + b"\n")
    draw(out / "tuning.png", standings)


def draw(path: Path, standings: list[Standing[Plan]]) -> None:
    """Every measured step, their medians, and what was planned."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from deploy.report_figures import COLOURS, STYLE

    ran = [one for one in reversed(standings) if one.last.seconds]
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 1.2 + 0.45 * max(len(ran), 1)), layout="constrained", dpi=120)
        axes = figure.subplots()
        for place, one in enumerate(ran):
            seconds = one.last.seconds
            axes.plot(seconds, [place] * len(seconds), ".", color=COLOURS[0], alpha=0.35)
            axes.plot(one.last.median, place, "|", color=COLOURS[0], markersize=16, markeredgewidth=2)
            axes.plot(one.candidate.seconds.total, place, "d", color=COLOURS[1], markersize=5)
        axes.set_yticks(range(len(ran)), [describe(one.candidate) for one in ran])
        axes.set_xlabel("seconds of a step: measured (dots, bar at the median), planned (diamond)")
        axes.set_xlim(left=0)
        with replacing(path) as stream:
            figure.savefig(stream, format="png")


def _row(number: int, one: Standing[Plan]) -> tuple[str, ...]:
    planned = f"{one.candidate.seconds.total:.3f} s"
    if not one.last.seconds:
        return str(number), describe(one.candidate), "-", "failed", "", planned, ""
    memory = "" if one.last.memory_gib is None else f"{one.last.memory_gib:.2f} GiB"
    seconds, error = f"{one.last.median:.4f} s", f"{one.last.error:.4f}"
    return str(number), describe(one.candidate), str(len(one.last.seconds)), seconds, error, planned, memory
