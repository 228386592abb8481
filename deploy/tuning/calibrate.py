"""The planner's constants from measured steps."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipelines.atomic import replacing
from deploy.plan.hardware import Cluster, Device
from deploy.plan.plan import Plan
from deploy.plan.problem import Problem
from deploy.plan.search import plan_of

FACTORS = ("arithmetic", "memory", "links", "waits")
"""What is fitted: how much faster or slower each is than the table says."""
CAUTION = 0.02
"""Weight of staying with the table, against that of one measurement: few steps cannot say all of it."""
WAITS = ("block_wait", "hook_wait", "microbatch_wait", "step_wait", "link_wait", "network_wait")


def fit(problem: Problem, measured: Sequence[tuple[Plan, float]]) -> Device:
    """The device whose planned steps are nearest to measured ones, by squared logarithms of their ratios.

    Args:
        problem: what was planned for.
        measured: plans and the seconds that their steps took.
    """
    device = problem.cluster.device

    def badness(logs: list[float]) -> float:
        fitted = scaled(device, dict(zip(FACTORS, map(math.exp, logs), strict=True)))
        errors = [math.log(_seconds(problem, plan, fitted) / seconds) for plan, seconds in measured]
        return sum(error**2 for error in errors) + CAUTION * sum(value**2 for value in logs)

    logs = _descend(badness, [0.0] * len(FACTORS))
    return scaled(device, dict(zip(FACTORS, map(math.exp, logs), strict=True)))


def scaled(device: Device, factors: dict[str, float]) -> Device:
    """A device with other speeds; a share beyond 1 becomes a larger peak."""
    changes = {name: getattr(device, name) / factors["waits"] for name in WAITS}
    for share, peaks, factor in (
        ("matmul_share", ("tflops", "fp32_tflops"), factors["arithmetic"]),
        ("memory_share", ("memory_gb_per_s",), factors["memory"]),
        ("link_share", ("link_gb_per_s", "network_gbit_per_s"), factors["links"]),
    ):
        wanted = getattr(device, share) * factor
        changes[share] = min(1.0, wanted)
        for peak in peaks:
            changes[peak] = getattr(device, peak) * max(1.0, wanted)
    return dataclasses.replace(device, **changes)


def write(path: Path, name: str, device: Device) -> None:
    """Write a file that ``d2v plan --hardware`` reads."""
    import yaml

    fields = dataclasses.asdict(device)
    values = {name: value if isinstance(value, bool) else float(f"{value:.4g}") for name, value in fields.items()}
    with replacing(path) as stream:
        stream.write(yaml.safe_dump({name: values}, sort_keys=False).encode())


def _seconds(problem: Problem, plan: Plan, device: Device) -> float:
    cluster = problem.cluster
    moved = Cluster(cluster.num_nodes, cluster.per_node, cluster.name, device)
    return plan_of(dataclasses.replace(problem, config=plan.config, cluster=moved)).seconds.total


def _descend(badness: Callable[[list[float]], float], start: list[float]) -> list[float]:
    """A minimum near ``start``: one coordinate after the other, by steps that halve when none helps."""
    point, least, step = list(start), badness(start), 0.5
    while step > 0.01:
        before = least
        for index in range(len(point)):
            for change in (step, -step):
                moved = [value + change * (number == index) for number, value in enumerate(point)]
                found = badness(moved)
                if found < least:
                    point, least = moved, found
        if least >= before:
            step /= 2
    return point
