"""Plans as text for a terminal, and as JSON. No torch."""

import dataclasses
from typing import Any

from deploy.plan.advice import Advice
from deploy.plan.plan import Plan
from deploy.plan.throughput import wire_bytes
from deploy.plan.traffic import traffic_per_step

COLUMNS = ("", "tp", "pp", "dp", "zero", "micro", "saves memory by", "memory", "step", "samples/s", "MFU", "hours")


def as_text(advice: Advice, top: int) -> str:
    """Tables of layouts, of the first one's memory and time, and what is not legal or does not fit."""
    problem, found = advice.problem, advice.found
    cluster, device = problem.cluster, problem.cluster.device
    usable = device.memory_gb * device.usable_share
    lines = [
        f"{problem.config.name} on {cluster}: {cluster.size:,} devices, {usable:.1f} of {device.memory_gb:g} GB usable",
        f"{len(found.plans):,} plans fit, {len(found.too_large):,} do not, {len(found.refusals):,} are not legal",
        *(f"note: {warning}" for warning in advice.warnings),
        "",
    ]
    rows = [(str(number), *_cells(plan)) for number, plan in enumerate(advice.shown[:top], 1)]
    if advice.own is not None:
        rows.insert(0, ("own", *_cells(advice.own)))
    if rows:
        lines += [*_table([COLUMNS, *rows]), "", *_detail(advice.own or advice.shown[0])]
    if found.too_large:
        least = found.too_large[0]
        lines += [
            "",
            f"does not fit: {len(found.too_large):,} plans; the smallest of them ({describe(least)}) "
            f"{_shortage(least)}",
        ]
    if advice.reasons:
        lines += ["", "not legal:", *(f"  {number:>5} x  e.g. {reason}" for reason, number in advice.reasons)]
    return "\n".join(lines)


def as_json(advice: Advice, top: int) -> dict[str, Any]:
    """All figures."""
    problem, found = advice.problem, advice.found
    return {
        "recipe": problem.config.name,
        "cluster": str(problem.cluster),
        "device": dataclasses.asdict(problem.cluster.device),
        "num_devices": problem.cluster.size,
        "fit": len(found.plans),
        "too_large": len(found.too_large),
        "not_legal": len(found.refusals),
        "warnings": advice.warnings,
        "own": None if advice.own is None else figures(advice.own),
        "plans": [figures(plan) for plan in advice.shown[:top]],
        "smallest_too_large": figures(found.too_large[0]) if found.too_large else None,
        "reasons": [{"reason": reason, "count": number} for reason, number in advice.reasons],
    }


def figures(plan: Plan) -> dict[str, Any]:
    """One plan, bytes and seconds."""
    section = dataclasses.asdict(plan.config.parallel)
    state, host = plan.states[plan.fullest]
    collectives = traffic_per_step(plan.config, plan.grid, plan.fullest, plan.engine)
    return {
        "parallel": section | {"dp_size": plan.grid.dp_size},
        "global_batch_size": plan.config.training.global_batch_size,
        "microbatches": {
            name: dict(zip(("size", "number"), plan.config.microbatches(name, plan.grid.dp_size), strict=True))
            for name in plan.config.model.modalities
        },
        "memory_bytes": {
            "total": plan.memory_bytes,
            "spare": plan.spare_bytes,
            "state": dataclasses.asdict(state),
            "activations": dataclasses.asdict(plan.activations[plan.fullest]),
            "host": dataclasses.asdict(host),
            "machine": plan.host_bytes,
            "machine_spare": plan.host_spare_bytes,
        },
        "seconds": dataclasses.asdict(plan.seconds) | {"total": plan.seconds.total},
        "bytes_sent": {group: round(wire_bytes(collectives, plan.grid, group)) for group in ("dp", "tp", "pp")},
        "samples_per_second": plan.samples_per_second,
        "mfu": plan.mfu,
        "device_hours": plan.device_hours,
    }


def _shortage(plan: Plan) -> str:
    """Of the device's memory, or of its machine's."""
    if plan.spare_bytes < 0:
        return f"needs {_gb(plan.memory_bytes)} GB, {_gb(-plan.spare_bytes)} GB more than there is"
    return (
        f"needs {_gb(plan.host_bytes)} GB of a machine's own memory, {_gb(-plan.host_spare_bytes)} GB more than it has"
    )


def describe(plan: Plan) -> str:
    """A layout in few words."""
    section = plan.config.parallel
    parts = [f"tp {section.tp_size}, pp {section.pp_size}, dp {plan.grid.dp_size}, ZeRO {section.zero_stage}"]
    if plan.config.training.microbatch_size:
        parts.append(f"microbatch {plan.config.training.microbatch_size}")
    return ", ".join(parts + _savings(plan))


def _savings(plan: Plan) -> list[str]:
    section = plan.config.parallel
    options = {
        "sequence parallel": section.sequence_parallel,
        "recompute": section.recompute,
        "gathered teacher": section.gathers_teacher,
        "offload": section.offload != "none",
    }
    return [name for name, is_on in options.items() if is_on]


def _cells(plan: Plan) -> tuple[str, ...]:
    section = plan.config.parallel
    sizes = [plan.config.microbatches(name, plan.grid.dp_size) for name in plan.config.model.modalities]
    return (
        str(section.tp_size),
        str(section.pp_size),
        str(plan.grid.dp_size),
        str(section.zero_stage),
        " ".join(f"{size}x{number}" for size, number in sizes),
        ", ".join(_savings(plan)) or "-",
        f"{_gb(plan.memory_bytes)} GB",
        f"{plan.seconds.total:.3f} s",
        f"{plan.samples_per_second:,.0f}",
        f"{100 * plan.mfu:.1f} %",
        f"{plan.device_hours:,.0f}",
    )


def _detail(plan: Plan) -> list[str]:
    """Memory and time of one plan by part."""
    state, host = plan.states[plan.fullest]
    held = plan.activations[plan.fullest]
    memory = dataclasses.asdict(state) | {
        "student's activations": held.student,
        "decoder's": held.decoder,
        "teacher's, the loss's or a reduction's": held.peak - held.student - held.decoder,
    }
    collectives = traffic_per_step(plan.config, plan.grid, plan.fullest, plan.engine)
    sent = {group: wire_bytes(collectives, plan.grid, group) for group in ("dp", "tp", "pp")}
    lines = [
        f"{describe(plan)}:",
        _listed("  GB of the fullest rank", memory, 1e9),
        _listed("  seconds of a step", dataclasses.asdict(plan.seconds), 1),
        _listed("  GB that leave a rank in a step", sent, 1e9),
    ]
    return lines + ([_listed("  GB on the host", dataclasses.asdict(host), 1e9)] if host.total else [])


def _listed(title: str, values: dict[str, float], unit: float) -> str:
    shown = [f"{name.replace('_', ' ')} {value / unit:.3g}" for name, value in values.items() if value]
    return f"{title}: {', '.join(shown) or 'none'}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f}"
