"""Layouts that a search gives and refuses, over thousands of combinations; in which direction figures move."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest

from deploy.plan.command import flags
from deploy.plan.hardware import DEVICES, Cluster, read_cluster
from deploy.plan.plan import Plan
from deploy.plan.problem import Problem
from deploy.plan.search import Search, plan_of, search
from deploy.plan.throughput import Links
from deploy.plan.traffic import traffic_per_step
from pretrain.config import with_overrides
from pretrain.errors import RunError
from pretrain.parallel.grid import make_grid
from pretrain.recipes.registry import recipe
from pretrain.request import lay_out
from pretrain.work import check_rows

CASES = [
    ("image-tiny", "2xcpu", 0),
    ("image-base", "3x8xA100-40", 0),
    ("image-large", "2x8xH100", 96),
    ("image-huge14", "128x8xH100", 0),
    ("image-7b", "4x8xA100-40", 0),
    ("audio-base", "2x4xMI300X", 0),
    ("audio-1b", "6x8xB200", 0),
    ("text-large", "5x7xH200", 0),
    ("multimodal-base", "2x8xA100-80", 0),
]
FIELDS = ("parallel.tp_size", "parallel.pp_size", "parallel.zero_stage", "training.global_batch_size", "data.")


def problem(name: str, cluster: str, batch: int = 0, *overrides: str) -> Problem:
    more = [f"--training.global-batch-size={batch}"] if batch else []
    config = with_overrides(recipe(name), [*overrides, *more])
    pinned = {flag[len("--parallel.") :].partition("=")[0].replace("-", "_") for flag in overrides}
    return Problem(config, read_cluster(cluster, DEVICES), recipe(name), pinned=frozenset(pinned))


@pytest.fixture(scope="module")
def searches() -> list[Search]:
    return [search(problem(*case)) for case in CASES]


def test_there_are_thousands(searches: list[Search]) -> None:
    assert sum(len(one.plans) + len(one.too_large) for one in searches) > 2_000
    assert sum(len(one.refusals) for one in searches) > 500


def test_every_plan_is_legal(searches: list[Search]) -> None:
    for found in searches:
        for plan in itertools.chain(found.plans, found.too_large):
            config = plan.config
            assert make_grid(config.parallel, config.model, plan.cluster.size) == plan.grid
            check_rows(config, plan.grid)
            _, settings = lay_out(config, plan.cluster.size, {})
            assert settings["zero_optimization"]["stage"] == config.parallel.zero_stage
            for name in config.model.modalities:
                size, number = config.microbatches(name, plan.grid.dp_size)
                assert size * number * plan.grid.dp_size == config.units_per_step(name)


def test_flags_make_the_same_run(searches: list[Search]) -> None:
    for case, found in zip(CASES, searches, strict=True):
        away = [plan for plan in found.too_large if plan.config.parallel.offload != "none"]
        for plan in [*found.plans[::400], *found.too_large[::400], *away[:1]]:
            assert with_overrides(recipe(case[0]), flags(plan)) == plan.config


def test_every_refusal_is_one(searches: list[Search]) -> None:
    """The reason names a field, and the layout really cannot start."""
    for case, found in zip(CASES, searches, strict=True):
        config = problem(*case).config
        size = read_cluster(case[1], DEVICES).size
        for refusal in found.refusals:
            assert refusal.reason.startswith(FIELDS) and len(refusal.reason) > 40
            with pytest.raises(RunError) as caught:
                grid = make_grid(refusal.section, config.model, size)
                for name in config.model.modalities if refusal.microbatch_size is None else ():
                    config.microbatches(name, grid.dp_size)
                training = dataclasses.replace(config.training, microbatch_size=refusal.microbatch_size)
                lay_out(dataclasses.replace(config, parallel=refusal.section, training=training), size, {})
            assert str(caught.value) == refusal.reason


def test_figures_make_sense(searches: list[Search]) -> None:
    for found in searches:
        for plan in itertools.chain(found.plans, found.too_large):
            for state, host in plan.states:
                assert all(value >= 0 for value in (*dataclasses.astuple(state), *dataclasses.astuple(host)))
            assert all(value >= 0 for held in plan.activations for value in dataclasses.astuple(held))
            assert all(held.peak >= held.decoder for held in plan.activations)
            assert all(value >= 0 for value in dataclasses.astuple(plan.seconds)) and 0 < plan.mfu < 1
            assert plan.memory_bytes > 0 and plan.device_hours > 0
        assert all(plan.spare_bytes >= 0 and plan.host_spare_bytes >= 0 for plan in found.plans)
        assert all(plan.spare_bytes < 0 or plan.host_spare_bytes < 0 for plan in found.too_large)
        seconds = [plan.seconds.total for plan in found.plans]
        assert all(after >= before * 0.998 for before, after in itertools.pairwise(seconds))


def one(name: str, cluster: str, *overrides: str, batch: int = 0) -> Plan:
    return plan_of(problem(name, cluster, batch, *overrides))


def state(plan: Plan) -> int:
    return plan.states[0][0].total


def activations(plan: Plan) -> int:
    return plan.activations[0].peak


ZERO = [[f"--parallel.zero-stage={stage}"] for stage in (1, 2, 3)]
CUT = ["--parallel.zero-stage=1"]
WHOLE = ["--training.microbatch-size=4", "--parallel.recompute=false"]


@pytest.mark.parametrize(
    ("measure", "layouts"),
    [
        (state, ZERO),
        (state, [[*CUT, f"--parallel.tp-size={size}"] for size in (1, 2, 4, 8)]),
        (activations, [[*CUT, f"--parallel.tp-size={size}", *WHOLE] for size in (1, 2, 4, 8)]),
        (state, [[*CUT, f"--parallel.pp-size={size}"] for size in (1, 2, 4, 8)]),
        (activations, [[f"--training.microbatch-size={size}"] for size in (8, 4, 2, 1)]),
        (activations, [["--parallel.recompute=false"], ["--parallel.recompute=true"]]),
        (
            activations,
            [[*CUT, "--parallel.tp-size=4", f"--parallel.sequence-parallel={on}"] for on in ("false", "true")],
        ),
        (state, [["--parallel.teacher=resident"], ["--parallel.teacher=gathered"]]),
        # at stage 1 a bucket of 2 GB, which only offloading needs there, outweighs what it moves
        (state, [["--parallel.zero-stage=2", f"--parallel.offload={what}"] for what in ("none", "optimizer")]),
    ],
)
@pytest.mark.parametrize("name", ["image-huge14", "image-7b"])
def test_what_saves_memory(name: str, measure: Callable[[Plan], int], layouts: list[list[str]]) -> None:
    sizes = [measure(one(name, "4x8xH100", *layout)) for layout in layouts]
    assert all(after < before for before, after in itertools.pairwise(sizes)), sizes


@pytest.mark.parametrize(
    "layouts",
    [
        [["--parallel.recompute=false"], ["--parallel.recompute=true"]],
        [["--parallel.offload=none"], ["--parallel.offload=optimizer"]],
        [["--training.microbatch-size=8"], ["--training.microbatch-size=1"]],
        [["--parallel.tp-size=1"], ["--parallel.tp-size=2"], ["--parallel.tp-size=8"]],
    ],
)
def test_what_costs_time(layouts: list[list[str]]) -> None:
    seconds = [one("image-huge14", "4x8xH100", *layout).seconds.total for layout in layouts]
    assert all(after > before for before, after in itertools.pairwise(seconds)), seconds


def test_more_microbatches_make_the_bubble_smaller() -> None:
    shares = [
        plan.seconds.bubble / plan.seconds.total
        for plan in (
            one("image-7b", "4x8xH100", "--parallel.zero-stage=1", "--parallel.pp-size=4", size) for size in SIZES
        )
    ]
    assert all(after < before for before, after in itertools.pairwise(shares)), shares


SIZES = [f"--training.microbatch-size={size}" for size in (256, 64, 16, 4)]


@pytest.mark.parametrize(
    ("field", "factor"),
    [("tflops", 2), ("memory_gb_per_s", 2), ("link_gb_per_s", 2), ("network_gbit_per_s", 2), ("block_wait", 0.5)],
)
def test_better_hardware_is_faster(field: str, factor: float) -> None:
    asked = problem("image-huge14", "4x8xH100", 0, "--parallel.zero-stage=1", "--parallel.tp-size=4")
    device = asked.cluster.device
    better = dataclasses.replace(device, **{field: factor * getattr(device, field)})
    cluster = Cluster(4, 8, "better", better)
    assert plan_of(dataclasses.replace(asked, cluster=cluster)).seconds.total < plan_of(asked).seconds.total


@pytest.mark.parametrize(("tp_size", "inside"), [(2, 2), (4, 4), (6, 2), (3, 1)])
def test_tensor_groups_that_straddle_machines_use_the_network(tp_size: int, inside: int) -> None:
    """Ranks 6 to 11 of 8 to a machine are 2 and 4: their sums pass through two ports."""
    plan = one("image-base", "3x8xH100", CUT[0], f"--parallel.tp-size={tp_size}", batch=2304)
    links, device = Links(plan.cluster, plan.grid, traffic_per_step(plan.config, plan.grid)), plan.cluster.device
    sums = [one for one in links.collectives if one.group == "tp"]
    ports = inside * device.network_gbit_per_s / 8 * 1e9
    speed = device.link_share * (device.link_gb_per_s * 1e9 if inside == tp_size else ports)
    waits = device.link_wait if inside == tp_size else device.network_wait * math.log2(2 * tp_size / inside)
    expected = sum(each.wire_bytes(tp_size) / speed + each.count * waits for each in sums)
    assert links.seconds(group="tp") == pytest.approx(expected) and expected > 0


def test_data_parallel_groups_of_stages_straddle_too() -> None:
    """Stages of 6 ranks on machines of 8: ranks 6 to 11 are 2 and 4."""
    plan = one("image-base", "3x8xH100", CUT[0], "--parallel.pp-size=4", batch=2304)
    links, device = Links(plan.cluster, plan.grid, traffic_per_step(plan.config, plan.grid)), plan.cluster.device
    averages = [one for one in links.collectives if one.group == "dp"]
    speed = device.link_share * 2 * device.network_gbit_per_s / 8 * 1e9
    waits = device.network_wait * math.log2(2 * 6 / 2)
    expected = sum(each.wire_bytes(6) / speed + each.count * waits for each in averages)
    assert links.seconds(group="dp") == pytest.approx(expected) and expected > 0


def test_pinned_fields_are_kept() -> None:
    found = search(problem("image-huge14", "4x8xH100", 0, "--parallel.tp-size=2", "--parallel.recompute=true"))
    sections = [plan.config.parallel for plan in (*found.plans, *found.too_large)]
    assert sections and {(section.tp_size, section.recompute) for section in sections} == {(2, True)}


def test_an_option_that_excludes_a_stage_refuses_it() -> None:
    """Compiled blocks do not go with stage 3: the other stages are planned, and the reason is given."""
    found = search(problem("image-base", "8xH100", 0, "--parallel.compile=blocks"))
    stages = {plan.config.parallel.zero_stage for plan in found.plans}
    assert stages == {0, 1, 2} and {plan.config.parallel.compile for plan in found.plans} == {"blocks"}
    assert any(refusal.reason.startswith("parallel.compile: blocks does not go with") for refusal in found.refusals)


def test_time_saving_options_are_tried_where_they_are_needed() -> None:
    """7 B on one device of 40 GB: only with the optimizer on the host, which at stage 3 takes the gradients along."""
    found = search(problem("image-7b", "1xA100-40"))
    sections = [plan.config.parallel for plan in found.plans]
    assert sections and {(one.offload, one.zero_stage) for one in sections} == {("optimizer", 3)}
    roomy = search(problem("image-base", "8xH100"))
    assert not any(plan.config.parallel.recompute or plan.config.parallel.gathers_teacher for plan in roomy.plans)


def test_what_is_offloaded_has_to_fit_the_machine() -> None:
    """All ranks of a machine share its memory: 24 bytes per weight at stage 3, of which 8 are gradients."""
    asked = problem("image-7b", "1x8xH100", 0, "--parallel.offload=optimizer", "--parallel.zero-stage=3")
    plan = plan_of(asked)
    each = plan.states[0][1].total
    assert plan.host_bytes == 8 * each and 170e9 < plan.host_bytes < 180e9
    assert plan.host_spare_bytes == 2_000e9 * asked.cluster.device.usable_share - plan.host_bytes
    assert search(asked).plans
    small = dataclasses.replace(asked.cluster.device, host_memory_gb=0.5 * plan.host_bytes / 1e9)
    found = search(dataclasses.replace(asked, cluster=dataclasses.replace(asked.cluster, device=small)))
    assert not found.plans and any(plan.spare_bytes >= 0 > plan.host_spare_bytes for plan in found.too_large)


def test_machines_hold_the_stages_of_their_ranks() -> None:
    """Two machines of two stages each: the fuller one counts."""
    plan = one("image-7b", "2x8xH100", "--parallel.offload=optimizer", *CUT, "--parallel.pp-size=4")
    first, second, third, last = (4 * host.total for _, host in plan.states)
    assert plan.host_bytes == max(first + second, third + last)


def test_processors_offload_to_their_own_memory() -> None:
    plan = one("image-base", "2xcpu", "--parallel.offload=optimizer")
    state, host = plan.states[0]
    assert plan.host_bytes == 0 < host.total
    assert plan.memory_bytes == state.total + host.total + plan.activations[0].peak


def test_a_step_of_one_process_is_all_arithmetic_and_waiting() -> None:
    seconds = one("image-tiny", "1xcpu").seconds
    assert seconds.tensor_parallel == seconds.data_parallel == seconds.pipeline == seconds.bubble == 0
    assert seconds.student > 3 * seconds.teacher > 0


def test_stages_wait_as_long_as_the_schedule_says() -> None:
    """With n microbatches and p stages, p - 1 of n + p - 1 turns are empty."""
    plan = one("image-7b", "4x8xH100", "--parallel.zero-stage=1", "--parallel.pp-size=4", SIZES[3])
    seconds, (_, number) = plan.seconds, plan.config.microbatches("image", plan.grid.dp_size)
    work = seconds.student + seconds.teacher + seconds.tensor_parallel
    assert seconds.bubble / (work + seconds.bubble) == pytest.approx(3 / (number + 3))
