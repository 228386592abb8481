"""The report as HTML: facts, evaluations, plots, events and configuration laid out by templates/report.html."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2

from deploy.report_figures import draw, panels
from deploy.report_history import History
from model.accounting import num_parameters, train_flops_per_sample
from pretrain.config import RunConfig
from pretrain.evaluate.comparison import Comparison
from pretrain.observe.records import Record


def render(run: Path, config: RunConfig, history: History, evaluations: dict[str, Comparison]) -> str:
    """The whole page; it refers to nothing outside itself.

    Args:
        run: the run directory, for the page's headings.
        config: the run's configuration.
        history: what was measured.
        evaluations: by protocol; may be empty.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deploy"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    plots = [draw(panel, history) for panel in panels(history)]
    return environment.get_template("report.html").render(
        title=config.name,
        path=run,
        started=_last_start(history),
        status=status(history, config),
        num_alarms=sum(event.get("event") == "alarm" for event in history.events),
        facts=_facts(config, history),
        evaluations=[_evaluation_row(comparison) for comparison in evaluations.values()],
        plots=[plot for plot in plots if plot],
        events=[_event_row(event) for event in history.events],
        config=dataclasses.asdict(config),
        num_unreadable=history.num_unreadable,
    )


def status(history: History, config: RunConfig) -> str:
    """Whether the run is finished, stopped, or how far it was seen."""
    step, last = history.train[-1]["step"], history.events[-1].get("event") if history.events else None
    if last == "done" or step >= config.training.max_steps:
        return "finished"
    return f"{'stopped' if last == 'stop' else 'last seen'} at step {step:,} of {config.training.max_steps:,}"


def _batches(config: RunConfig, step: int) -> dict[str, str]:
    """What was seen, and what one step takes, of every modality."""
    seen, each = {}, {}
    for name, modality in config.model.modalities.items():
        of = "" if len(config.model.modalities) == 1 else f"{name}: "
        unit = "batches" if name == "audio" else "samples"
        size = config.units_per_step(name)
        seen[f"{of}{unit} seen"] = f"{step * size:,}"
        each[f"{of}{unit} × views / step"] = f"{size} × {modality.num_views}"
    return seen | each


def _flops(config: RunConfig) -> dict[str, str]:
    """Arithmetic of one image, one second of audio, one block of text."""
    found = {}
    if config.data.image:
        found["GFLOP per image"] = train_flops_per_sample(config.model, "image", config.data.image.size)
    if config.data.audio:
        found["GFLOP per second of audio"] = train_flops_per_sample(
            config.model, "audio", config.data.audio.sample_rate
        )
    if config.data.text:
        tokens = config.data.text.tokens_per_sample
        found[f"GFLOP per {tokens} tokens"] = train_flops_per_sample(config.model, "text", tokens)
    return {name: f"{flops / 1e9:,.3g}" for name, flops in found.items()}


def _last_start(history: History) -> str:
    """What the run said when it last started or went on: recipe, devices, layout, precision."""
    starts = [event for event in history.events if event.get("event") in ("start", "resume")]
    return starts[-1].get("message", "") if starts else ""


def _facts(config: RunConfig, history: History) -> dict[str, str]:
    """Name and value of what belongs at the top of the page."""
    step = history.train[-1]["step"]
    return {
        "steps": f"{step:,} of {config.training.max_steps:,}",
        **_batches(config, step),
        "duration": str(timedelta(seconds=round(history.duration_seconds))),
        "samples / s (median)": _median(history, "samples_per_second"),
        "TFLOP / s (median)": _median(history, "tflops_per_second"),
        "parameters": _in_millions(num_parameters(config.model)),
        **_flops(config),
        "precision, ZeRO stage": f"{config.precision.dtype}, {config.parallel.zero_stage}",
    }


def _median(history: History, name: str) -> str:
    values = sorted(history.series(name)[1])
    return f"{values[len(values) // 2]:,.4g}" if values else "–"


def _in_millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M" if count < 1e8 else f"{count / 1e6:,.0f} M"


def _event_row(event: Record) -> dict[str, Any]:
    time = event.get("time")
    return {
        "step": f"{event['step']:,}",
        "time": datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if time else "",
        "event": event.get("event", ""),
        "message": event.get("message", ""),
    }


def _evaluation_row(comparison: Comparison) -> dict[str, str]:
    shares = {name: getattr(comparison, name) for name in ("pixels", "untrained", "trained", "chance")}
    measured = (
        f"{comparison.source} of step {comparison.step:,}: {comparison.num_test:,} test images, "
        f"{comparison.num_bank:,} labelled ones in the bank, {comparison.num_classes} classes"
    )
    return {
        "protocol": comparison.title,
        "measured": measured,
        **{name: "–" if share is None else f"{100 * share:.1f} %" for name, share in shares.items()},
    }
