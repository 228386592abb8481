"""Which layouts are legal, what is said of the others, and where each rank stands."""

import itertools
import re

import pytest

from model.config import ModelConfig
from pretrain.errors import RunError
from pretrain.parallel.grid import Grid, make_grid
from pretrain.recipes.registry import recipe
from pretrain.sections import ParallelSection

MODEL = recipe("image-base").model  # 10 blocks, 12 heads, hidden width 3072


def is_legal(section: ParallelSection, model: ModelConfig, world_size: int) -> bool:
    heads, depth = model.encoder.num_heads, model.encoder.depth
    return (
        world_size % (section.tp_size * section.pp_size) == 0
        and heads % section.tp_size == 0
        and section.pp_size <= depth
        and (section.pp_size == 1 or section.zero_stage == 1)
    )


@pytest.mark.parametrize("world_size", [1, 2, 6, 8, 12, 16])
def test_legal_layouts_are_taken_and_others_told_the_nearest_value(world_size: int) -> None:
    for tp_size, pp_size, stage in itertools.product(range(1, 17), range(1, 17), range(4)):
        section = ParallelSection(tp_size=tp_size, pp_size=pp_size, zero_stage=stage)  # type: ignore[arg-type]
        if is_legal(section, MODEL, world_size):
            grid = make_grid(section, MODEL, world_size)
            assert grid.tp_size * grid.pp_size * grid.dp_size == world_size
            continue
        with pytest.raises(RunError, match=r"^parallel\.(tp_size|pp_size|zero_stage): ") as caught:
            make_grid(section, MODEL, world_size)
        message = str(caught.value)
        assert "\n" not in message
        field = message.split(":")[0].removeprefix("parallel.")
        nearest = int(re.findall(r"\d+", message)[-1])
        assert nearest < getattr(section, field) or (field, nearest) == ("zero_stage", 1)
        mended = {"tp_size": tp_size, "pp_size": pp_size, "zero_stage": stage} | {field: nearest}
        try:  # whatever may be wrong beside it, that field is not blamed again
            make_grid(ParallelSection(**mended), MODEL, world_size)  # type: ignore[arg-type]
        except RunError as error:
            assert not str(error).startswith(f"parallel.{field}:")


def test_following_the_advice_ends_in_a_legal_layout() -> None:
    section = {"tp_size": 7, "pp_size": 11, "zero_stage": 3}
    for _ in range(10):
        try:
            make_grid(ParallelSection(**section), MODEL, 16)  # type: ignore[arg-type]
            break
        except RunError as error:
            field = str(error).split(":")[0].removeprefix("parallel.")
            section[field] = int(re.findall(r"\d+", str(error))[-1])
    assert section == {"tp_size": 4, "pp_size": 4, "zero_stage": 1}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (ParallelSection(pp_size=2, zero_stage=0), "from stage 1 on only"),
        (ParallelSection(pp_size=2, zero_stage=2), "reduces gradients in every microbatch"),
        (ParallelSection(pp_size=2, zero_stage=3), "would wait for stages"),
        (
            ParallelSection(pp_size=12),
            "12 stages need a block each, but there are 10; the nearest size that is possible is 6",
        ),
        (ParallelSection(tp_size=2, pp_size=5), "5 does not divide the 6 groups of 2 processes; the nearest size"),
        (ParallelSection(tp_size=5), "5 does not divide the 12 processes; the nearest size that is possible is 4"),
    ],
)
def test_reasons(section: ParallelSection, words: str) -> None:
    with pytest.raises(RunError, match=re.escape(words)):
        make_grid(section, MODEL, 12)


@pytest.mark.parametrize(("tp_size", "dp_size", "pp_size"), itertools.product((1, 2, 3), repeat=3))
def test_every_rank_has_its_place(tp_size: int, dp_size: int, pp_size: int) -> None:
    grid = Grid(tp_size * dp_size * pp_size, tp_size, pp_size)
    assert grid.dp_size == dp_size
    places = [(grid.pp_rank(rank), grid.dp_rank(rank), grid.tp_rank(rank)) for rank in range(grid.world_size)]
    assert places == list(itertools.product(range(pp_size), range(dp_size), range(tp_size)))
