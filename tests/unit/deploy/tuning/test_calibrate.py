"""Constants from measurements: of a machine that is known, they are found again."""

import dataclasses
from pathlib import Path

import pytest

from deploy.plan.hardware import DEVICES, Cluster, read_cluster, read_devices
from deploy.plan.plan import Plan
from deploy.plan.problem import Problem
from deploy.plan.search import search
from deploy.tuning.calibrate import fit, scaled, write
from deploy.tuning.candidates import best
from pretrain.recipes.registry import recipe

TRUTH = {"arithmetic": 0.5, "memory": 1.0, "links": 1.0, "waits": 0.25}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(recipe("image-tiny"), read_cluster("2xcpu", DEVICES), recipe("image-tiny"))


def on(problem: Problem, factors: dict[str, float]) -> Problem:
    cluster = problem.cluster
    device = scaled(cluster.device, factors)
    return dataclasses.replace(problem, cluster=Cluster(1, cluster.per_node, cluster.name, device))


def test_measured_steps_are_reproduced(problem: Problem) -> None:
    """Steps of a machine with other speeds: planned ones are off by a third before, by under 5 % after."""
    plans = best(search(problem), 6)
    real = {repr(plan.config): plan.seconds.total for plan in search(on(problem, TRUTH)).plans}
    measured = [(plan, real[repr(plan.config)]) for plan in plans]

    def worst(candidates: list[Plan]) -> float:
        again = {repr(plan.config): plan.seconds.total for plan in candidates}
        return max(abs(again[repr(plan.config)] / seconds - 1) for plan, seconds in measured)

    fitted = fit(problem, measured)
    cluster = Cluster(1, 2, "cpu", fitted)
    assert worst(plans) > 0.3
    assert worst(search(dataclasses.replace(problem, cluster=cluster)).plans) < 0.05


def test_right_constants_stay(problem: Problem) -> None:
    plans = best(search(problem), 4)
    fitted = fit(problem, [(plan, plan.seconds.total) for plan in plans])
    assert dataclasses.astuple(fitted) == pytest.approx(dataclasses.astuple(problem.cluster.device), rel=1e-9)


def test_a_share_above_one_is_a_higher_peak() -> None:
    before = DEVICES["H100"]
    after = scaled(before, {"arithmetic": 4.0, "memory": 0.5, "links": 1.0, "waits": 2.0})
    assert after.matmul_share == 1.0
    assert after.matmul_share * after.tflops == pytest.approx(4 * before.matmul_share * before.tflops)
    assert after.memory_share == before.memory_share / 2 and after.block_wait == before.block_wait / 2


def test_the_file_is_what_plan_reads(tmp_path: Path) -> None:
    device = scaled(DEVICES["cpu"], TRUTH)
    write(tmp_path / "hardware.yaml", "cpu", device)
    again = read_devices(tmp_path / "hardware.yaml")["cpu"]
    assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(device), rel=1e-3)


def test_candidates_differ_in_layout_first(problem: Problem) -> None:
    found = search(problem)
    layouts = {plan.config.parallel for plan in found.plans}
    chosen = best(found, len(layouts) + 3)
    assert len({plan.config.parallel for plan in chosen[: len(layouts)]}) == len(layouts)
    assert len({repr(plan.config) for plan in chosen}) == len(layouts) + 3
    assert chosen[0] is found.plans[0]
