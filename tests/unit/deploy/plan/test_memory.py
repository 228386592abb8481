"""Bytes by arithmetic: what must be true of them at any layout (tests/distributed/test_bytes.py measures them)."""

import itertools

import pytest

from deploy.plan.memory import StateBytes, host_bytes, state_bytes
from model.inventory import student_parameters, teacher_parameters
from pretrain.config import RunConfig, with_overrides
from pretrain.parallel.grid import Grid, make_grid
from pretrain.recipes.registry import recipe

GRIDS = [(1, 1, 1), (2, 1, 1), (1, 4, 1), (1, 1, 2), (4, 2, 2)]
"""Sizes of dp, tp, pp."""


def at(name: str, dp: int, tp: int, pp: int, *overrides: str) -> tuple[RunConfig, Grid]:
    arguments = [f"--parallel.tp-size={tp}", f"--parallel.pp-size={pp}", *overrides]
    config = with_overrides(recipe(name), arguments)
    return config, make_grid(config.parallel, config.model, dp * tp * pp)


def of_all_ranks(config: RunConfig, grid: Grid, field: str) -> int:
    ranks = grid.dp_size * grid.tp_size
    return ranks * sum(getattr(state_bytes(config, grid, stage), field) for stage in range(grid.pp_size))


@pytest.mark.parametrize("name", ["image-base", "audio-base", "text-base", "multimodal-base", "image-huge14"])
@pytest.mark.parametrize("sizes", GRIDS)
def test_fp32_state_is_there_once_apart_from_padding_and_what_tensor_ranks_have_whole(
    name: str, sizes: tuple[int, int, int]
) -> None:
    config, grid = at(name, *sizes)
    for field, per_element, parameters in (
        ("optimizer", 12, student_parameters(config.model)),
        ("teacher_shard", 4, teacher_parameters(config.model)),
    ):
        whole = sum(one.numel for one in parameters)
        cut = {one.name for one in student_parameters(config.model, tp_size=2) if one.is_cut}
        copies = (grid.tp_size - 1) * sum(one.numel for one in parameters if one.name not in cut)
        beyond = of_all_ranks(config, grid, field) / per_element - whole - copies
        padding = 4 * grid.world_size + grid.tp_size * config.model.encoder.dim
        assert 0 <= beyond <= padding


@pytest.mark.parametrize(("name", "stage"), itertools.product(["image-base", "text-base"], [0, 1, 2, 3]))
def test_a_layout_of_one_process_holds_what_stage_0_holds(name: str, stage: int) -> None:
    """In fp32: weights, two moments, and from stage 1 on fp32 masters beside them."""
    config, grid = at(name, 1, 1, 1, f"--parallel.zero-stage={stage}", "--precision.dtype=fp32")
    numel = sum(one.numel for one in student_parameters(config.model))
    found = state_bytes(config, grid)
    assert found.optimizer == (8 if stage == 0 else 12) * (numel + (numel % 2 if stage in (1, 2) else 0))


def test_offload_moves_masters_moments_and_teacher_to_the_host() -> None:
    plain, moved = at("image-base", 2, 1, 1), at("image-base", 2, 1, 1, "--parallel.offload=optimizer")
    assert host_bytes(*plain) == StateBytes()
    for field in ("optimizer", "teacher_shard"):
        assert getattr(state_bytes(*moved), field) == 0
        assert getattr(host_bytes(*moved), field) == getattr(state_bytes(*plain), field) > 0
