"""The report's plots: curves over the steps, drawn by matplotlib as SVG."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from deploy.report_history import History
from pretrain.observe.records import Record

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#64748b")
EVENT_COLOURS = {"resume": "#475569", "alarm": "#dc2626"}
LOG_SCALE_RATIO = 30
"""Largest over smallest value from which a norm is drawn on a logarithmic scale."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#cbd5e1",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": "#475569",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e8edf3",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.hashsalt": "data2vec-scale",
}


@dataclass(frozen=True)
class Panel:
    """One plot: what it shows and how to read it."""

    title: str
    caption: str
    left: tuple[str, ...]
    """Measurements on the left axis."""
    unit: str
    """Label of the left axis."""
    right: tuple[str, ...] = ()
    """Measurements on an axis of their own, dashed."""
    right_unit: str = ""
    may_be_log: bool = False
    """Use a logarithmic scale where the values span orders of magnitude."""
    from_zero: bool = True
    """Show the zero line, so that heights compare."""


@dataclass(frozen=True)
class Plot:
    """A drawn panel for the page."""

    title: str
    caption: str
    image: str
    """The SVG as a data URI."""


def panels(history: History) -> list[Panel]:
    """All panels; those about features once per modality. The loss panel shows its modalities, or else its terms."""
    modalities = [name.removesuffix("target_spread") for name in history.names("") if name.endswith("target_spread")]
    terms = history.names("loss_")
    if len(modalities) > 1:
        terms = [f"loss_{modality.rstrip('_')}" for modality in modalities]
    return [
        Panel(
            "Loss",
            "With its terms, if there are several. In a healthy run it may rise again while the targets grow "
            "richer: a falling loss alone proves nothing.",
            ("loss", *(terms if len(terms) > 1 else [])),
            "loss",
            from_zero=False,
        ),
        Panel(
            "Schedules",
            "Learning rate, and the decay with which the teacher follows the student.",
            ("lr",),
            "learning rate",
            ("ema_decay",),
            "EMA decay",
            from_zero=False,
        ),
        Panel("Gradient norm", "Global norm before clipping.", ("grad_norm",), "norm", may_be_log=True),
        *(panel for modality in modalities for panel in _feature_panels(modality)),
        Panel(
            "Throughput",
            "Samples per second of the whole run, and the floating-point rate of one device (mask-aware count).",
            ("samples_per_second",),
            "samples / s",
            ("tflops_per_second",),
            "TFLOP / s",
        ),
        Panel("Memory", "Peak memory of one process.", ("memory_gib",), "GiB"),
        Panel(
            "Waiting for data",
            "Share of the step in which the trainer waited for the loader.",
            ("data_wait_share",),
            "share of the step",
        ),
    ]


def _feature_panels(prefix: str) -> list[Panel]:
    """Panels about the features of one modality, whose measurements begin with ``prefix``; "" if it is the only one."""
    of = f" of {prefix.rstrip('_')}" if prefix else ""
    parts = [f"{prefix}{part}" for part in ("student", "teacher", "frontend")]
    return [
        Panel(
            f"Spread of targets and predictions{of}",
            "Mean standard deviation per channel. Near zero means collapse; a prediction close to the target early "
            "on may only have learned positions.",
            (f"{prefix}target_spread", f"{prefix}prediction_spread"),
            "standard deviation",
        ),
        Panel(
            f"Effective rank{of}",
            "Number of directions that the features really use: student, teacher and frontend. "
            "A fall towards 1 means collapse.",
            tuple(f"{part}_effective_rank" for part in parts),
            "directions",
        ),
        Panel(
            f"Spread of features{of}",
            "Mean standard deviation per channel of student, teacher and frontend features.",
            tuple(f"{part}_spread" for part in parts),
            "standard deviation",
        ),
    ]


def draw(panel: Panel, history: History) -> Plot | None:
    """Draw a panel, or return None if the run recorded none of it."""
    if not any(history.series(name)[0] for name in panel.left + panel.right):
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(6.0, 2.9), layout="constrained")
        axes = figure.add_subplot()
        lines = _curves(axes, panel.left, history, COLOURS, "-")
        axes.set_ylabel(panel.unit)
        _scale(axes, panel)
        if panel.right:
            other = axes.twinx()
            lines += _curves(other, panel.right, history, COLOURS[len(panel.left) :], "--")
            other.set_ylabel(panel.right_unit)
            other.grid(False)
            _scale(other, panel)
        lines += _events(axes, history.events)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.legend(handles=lines, loc="outside upper left", ncols=len(lines), frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    image = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Plot(panel.title, panel.caption, image)


def _curves(axes: Axes, names: tuple[str, ...], history: History, colours: tuple[str, ...], style: str) -> list[Line2D]:
    """One line per measurement that was recorded; the first lies on top, where terms equal their sum."""
    lines = []
    for rank, (name, colour) in enumerate(zip(names, colours, strict=False)):
        steps, values = history.series(name)
        if steps:
            marker = "o" if len(steps) < 3 else None
            lines += axes.plot(
                steps, values, style, color=colour, label=_label(name), marker=marker, zorder=3 - rank / 10
            )
    return lines


def _label(name: str) -> str:
    """``student_effective_rank`` -> ``student``, ``loss_regression`` -> ``regression``, others in words."""
    for suffix in ("_effective_rank", "_spread"):
        name = name.removesuffix(suffix)
    return {"lr": "learning rate", "ema_decay": "EMA decay", "memory_gib": "memory"}.get(
        name, name.removeprefix("loss_").removesuffix("_share").replace("tflops", "TFLOP").replace("_", " ")
    )


def _scale(axes: Axes, panel: Panel) -> None:
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()] or [np.zeros(0)])
    drawn = drawn[np.isfinite(drawn)]
    if panel.may_be_log and drawn.size and 0 < LOG_SCALE_RATIO * drawn.min() < drawn.max():
        axes.set_yscale("log")
    elif panel.from_zero and drawn.size and drawn.max() > 0:
        axes.set_ylim(0, 1.08 * drawn.max())


def _events(axes: Axes, events: list[Record]) -> list[Line2D]:
    """Mark resumes and alarms by vertical lines; one legend entry per kind."""
    entries = []
    for kind, colour in EVENT_COLOURS.items():
        steps = [event["step"] for event in events if event.get("event") == kind]
        marks = [axes.axvline(step, color=colour, linewidth=1, linestyle=":", zorder=1) for step in steps]
        if marks:
            marks[0].set_label(kind)
            entries.append(marks[0])
    return entries
