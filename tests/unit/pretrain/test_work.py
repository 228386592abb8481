"""Sequence parallelism splits the rows of every microbatch evenly, or says why it cannot."""

import re

import pytest

from pretrain.config import with_overrides
from pretrain.errors import RunError
from pretrain.parallel.grid import make_grid
from pretrain.recipes.registry import recipe
from pretrain.work import check_rows


def check(name: str, world_size: int, **fields: object) -> None:
    arguments = [f"--{key.replace('__', '.')}={value}" for key, value in fields.items()]
    config = with_overrides(recipe(name), arguments)
    check_rows(config, make_grid(config.parallel, config.model, world_size))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("image-base", {"model__image__num_views": 3, "training__microbatch_size": 4}),
        ("text-base", {"model__text__num_views": 1, "training__microbatch_size": 8}),
        ("audio-base", {"model__audio__num_views": 8}),
    ],
)
def test_rows_that_divide_pass(name: str, fields: dict[str, object]) -> None:
    check(name, 4, parallel__tp_size=4, parallel__sequence_parallel=True, **fields)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        (
            "image-base",
            {"model__image__num_views": 3, "training__microbatch_size": 2},
            "4 does not divide the 6 rows of a microbatch of image (2 samples x 3 views), as "
            "parallel.sequence_parallel needs; the nearest that does is 2",
        ),
        (
            "text-base",
            {"model__text__num_views": 3, "training__microbatch_size": 1},
            "the 3 rows of a microbatch of text (the 3 views of a sample), as parallel.sequence_parallel needs; "
            "without sequence_parallel any number will do",
        ),
        ("audio-base", {"model__audio__num_views": 6}, "the 6 rows of a microbatch of audio (the 6 views of a sample)"),
    ],
)
def test_others_are_told_the_nearest_size(name: str, fields: dict[str, object], words: str) -> None:
    with pytest.raises(RunError, match=re.escape(words)) as caught:
        check(name, 4, parallel__tp_size=4, parallel__sequence_parallel=True, **fields)
    assert str(caught.value).startswith("parallel.tp_size: 4 does not divide")
    check(name, 4, parallel__tp_size=4, **fields)


def test_nothing_to_split_over_is_refused() -> None:
    with pytest.raises(RunError, match=r"^parallel\.sequence_parallel: .* set it to false, or parallel\.tp_size"):
        check("image-base", 4, parallel__sequence_parallel=True)
