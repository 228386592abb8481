"""Bytes of state and of traffic, counted in one real step at many layouts, are those that ``d2v plan`` reckons with."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from deploy.plan.collective import group_size
from deploy.plan.engine import Engine
from deploy.plan.memory import StateBytes, host_bytes, state_bytes
from deploy.plan.traffic import traffic_per_step
from model.inventory import student_parameters, teacher_parameters
from pretrain.parallel.grid import Grid, make_grid
from tests.distributed.bytes_worker import Case
from tests.distributed.launch import run_ranks

SMALL = {"stage3_param_persistence_threshold": 500}
"""Norms and biases stay whole at stage 3, matrices do not."""
BUCKET = {"reduce_bucket_size": 50_000}


def case(
    name: str, *, modality: str = "image", dtype: str = "bf16", engine: dict | None = None, **parallel: Any
) -> Case:
    return Case(name=name, parallel=parallel, modality=modality, dtype=dtype, engine=engine or {})


CASES = {
    2: [
        case("zero0", zero_stage=0),
        case("zero1", zero_stage=1),
        case("zero1-fp32", zero_stage=1, dtype="fp32", engine=BUCKET),
        case("zero1-gathered", zero_stage=1, teacher="gathered"),
        case("zero1-offload", zero_stage=1, offload="optimizer", engine=BUCKET),
        case("zero2", zero_stage=2, engine=BUCKET),
        case("zero2-offload", zero_stage=2, offload="optimizer", engine=BUCKET),
        case("zero3", zero_stage=3, engine=BUCKET | SMALL),
        case(
            "zero3-far",
            zero_stage=3,
            engine=BUCKET | SMALL | {"stage3_max_reuse_distance": 100_000, "stage3_prefetch_bucket_size": 0},
        ),
        case("zero3-resident", zero_stage=3, teacher="resident", engine=BUCKET),
        case("zero3-offload", zero_stage=3, offload="optimizer", engine=BUCKET),
        case("tp2", tp_size=2),
        case("tp2-audio", tp_size=2, modality="audio"),
        case("tp2-text", tp_size=2, modality="text", recompute=True),
        case("tp2-sp", tp_size=2, sequence_parallel=True),
        case("pp2", pp_size=2),
    ],
    4: [
        case("tp2-dp2-zero3", tp_size=2, zero_stage=3, engine=BUCKET | SMALL),
        case("pp2-dp2", pp_size=2),
        case("tp2-pp2-sp", tp_size=2, pp_size=2, sequence_parallel=True),
    ],
}
ALL = [(number, one) for number, cases in CASES.items() for one in cases]
NAMES = [one.name for _, one in ALL]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What every rank counted, by case."""
    found = {}
    for number, cases in CASES.items():
        out: Path = tmp_path_factory.mktemp(f"bytes-{number}")
        arguments = [json.dumps(vars(one)) for one in cases]
        run_ranks("tests.distributed.bytes_worker", [str(out), *arguments], number)
        found |= {one.name: json.loads((out / f"{one.name}.json").read_text()) for one in cases}
    return found


def planned(number: int, one: Case, pp_rank: int) -> tuple[StateBytes, StateBytes, Grid]:
    grid = make_grid(one.config.parallel, one.config.model, number)
    engine = Engine(**one.engine)
    return state_bytes(one.config, grid, pp_rank, engine), host_bytes(one.config, grid, pp_rank), grid


@pytest.mark.parametrize(("number", "one"), ALL, ids=NAMES)
def test_state_is_what_is_alive(counted: dict[str, list[dict[str, Any]]], number: int, one: Case) -> None:
    """On a CPU the host's memory is the device's. Every tensor is accounted for: the rest are gradients and buffers."""
    for rank in counted[one.name]:
        device, host, _ = planned(number, one, rank["pp_rank"])
        before, after = rank["before_step"], rank["after_step"]
        for found in (before, after):
            assert found["weights"] == device.weights
            assert found["optimizer"] == device.optimizer + host.optimizer
            assert found["teacher_shard"] == device.teacher_shard + host.teacher_shard
            assert found["seen"] == 0  # nothing of this step is reported
        if not one.config.parallel.gathers_teacher:
            assert after["teacher_weights"] == device.teacher_weights
        is_reducing = one.parallel.get("zero_stage") == 2  # the bucket is there in backward passes only
        bucket = 50_000 * (2 if one.dtype == "bf16" else 4) if is_reducing else 0
        buffers = device.buffers + host.buffers - before["tables"] - bucket
        assert before["rest"] == device.gradients + host.gradients + buffers


@pytest.mark.parametrize(("number", "one"), ALL, ids=NAMES)
def test_teacher_and_optimizer_are_there_once(counted: dict[str, list[dict[str, Any]]], number: int, one: Case) -> None:
    """1 / (dp * tp * pp) of the whole fp32 average each; what tensor-parallel ranks have whole, and padding, apart."""
    config, ranks = one.config, counted[one.name]
    grid = make_grid(config.parallel, config.model, number)
    whole = teacher_parameters(config.model)
    cut = {parameter.name for parameter in student_parameters(config.model, tp_size=2) if parameter.is_cut}
    copies = (grid.tp_size - 1) * sum(parameter.numel for parameter in whole if parameter.name not in cut)
    wanted = sum(parameter.numel for parameter in whole) + copies
    held = sum(rank["after_step"]["teacher_shard"] for rank in ranks) / 4
    assert 0 <= held - wanted <= number * (len(whole) if config.parallel.zero_stage == 3 else 4)


@pytest.mark.parametrize(("number", "one"), ALL, ids=NAMES)
def test_every_layout_starts_from_the_weights_of_one_process(
    counted: dict[str, list[dict[str, Any]]], number: int, one: Case
) -> None:
    for rank in counted[one.name]:
        assert rank["building"]["others"] == []


@pytest.mark.parametrize("name", [one.name for _, one in ALL if one.parallel.get("zero_stage") == 3])
def test_building_at_stage_3_takes_a_rank_s_share_and_two_blocks(
    counted: dict[str, list[dict[str, Any]]], name: str
) -> None:
    """Of the student: the share of its weights as computed with, and of the fp32 weights that the optimizer starts
    from. Those are let go of at the very end, when everything is there.
    """
    ((number, one),) = [each for each in ALL if each[1].name == name]
    grid = make_grid(one.config.parallel, one.config.model, number)
    parameters = student_parameters(one.config.model, tp_size=grid.tp_size)
    share = sum(-(-parameter.numel // grid.dp_size) for parameter in parameters)
    block = sum(parameter.numel for parameter in parameters if parameter.name.startswith("encoder.blocks.0."))
    for rank in counted[name]:
        tables = 3 * rank["after_step"]["tables"]  # in bf16; they are made in fp32
        assert rank["building"]["student"] <= (4 + 2) * share + 2 * 4 * block + tables
        assert rank["building"]["peak"] - rank["building"]["after"] <= 4 * share + 2 * 4 * block


def test_weights_that_stage_3_gathers(counted: dict[str, list[dict[str, Any]]]) -> None:
    """All of them stay until the backward pass, unless it is far away."""
    for name in ("zero3", "zero3-far"):
        (one,) = [each for _, each in ALL if each.name == name]
        device, _, _ = planned(2, one, 0)
        for rank in counted[name]:
            beside = rank["weights_after_forward"] - device.weights
            assert 0 < beside <= device.gathered_weights
            assert name == "zero3-far" or beside == device.gathered_weights


@pytest.mark.parametrize(("number", "one"), ALL, ids=NAMES)
def test_traffic_is_what_reaches_the_groups(counted: dict[str, list[dict[str, Any]]], number: int, one: Case) -> None:
    for rank in counted[one.name]:
        _, _, grid = planned(number, one, rank["pp_rank"])
        measured: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        for kind, group, dtype, when, calls, num_bytes in rank["calls"]:
            if group_size(grid, group) > 1 and num_bytes > 0:
                _add(measured[kind, group, dtype, _part(grid, group, when)], calls, num_bytes)
        formula: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        for each in traffic_per_step(one.config, grid, rank["pp_rank"], Engine(**one.engine)):
            _add(
                formula[each.kind, each.group, each.dtype, _part(grid, each.group, each.when)],
                each.count,
                each.num_bytes,
            )
        if one.modality == "audio":  # the lengths of these recordings differ
            assert {key: calls for key, (calls, _) in measured.items()} == {
                key: calls for key, (calls, _) in formula.items()
            }
            assert sum(size for _, size in measured.values()) == pytest.approx(
                sum(size for _, size in formula.values()), rel=0.1
            )
        else:
            assert _comparable(measured) == _comparable(formula)


def _add(entry: list[int], calls: int, num_bytes: int) -> None:
    entry[0] += calls
    entry[1] += num_bytes


def _part(grid: Grid, group: str, when: str) -> str:
    """Of a pipeline, whose passes overlap, only the engine's part of a step is told apart."""
    return when if grid.pp_size == 1 or when in ("step", "refresh", "batch") else "passes"


def _comparable(found: dict[tuple[str, ...], list[int]]) -> dict[tuple[str, ...], Any]:
    """How many weights stage 3 fetches by one call depends on what was fetched ahead: of those only bytes."""
    return {
        key: counted[1] if key[0] == "all_gather" and key[3] != "refresh" else counted for key, counted in found.items()
    }
