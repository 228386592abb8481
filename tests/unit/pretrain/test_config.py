"""RunConfig: YAML round trip, overrides, and one clear error for each kind of mistake."""

import pytest

from data_pipelines.errors import DataError
from model.config import ConfigError
from pretrain.config import RESUME_MAY_CHANGE, differences, from_yaml, to_yaml, with_overrides
from pretrain.errors import RunError
from pretrain.recipes.registry import RECIPES, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_round_trip(name: str) -> None:
    config = recipe(name)
    assert config.name == name
    assert from_yaml(to_yaml(config), "config.yaml") == config


def test_overrides_take_dashes_lists_and_null() -> None:
    config = with_overrides(
        recipe("image-base"),
        [
            "--training.max-steps",
            "7",
            "--optim.betas=[0.9, 0.98]",
            "--model.loss.scale",
            "1e-1",
            "--training.microbatch-size",
            "8",
            "--precision.dtype",
            "fp32",
        ],
    )
    assert config.training.max_steps == 7
    assert config.optim.betas == (0.9, 0.98)
    assert config.model.loss.scale == 0.1
    assert config.training.microbatch_size == 8
    assert config.precision.dtype == "fp32"
    assert with_overrides(config, ["--training.microbatch-size", "null"]).training.microbatch_size is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optim.lrr", "1"], ["optim.lrr", "did you mean optim.lr?"]),
        (["--optm.lr", "1"], ["optm", "did you mean optim?"]),
        (["--optim.lr", "fast"], ["optim.lr", "number"]),
        (["--optim.lr"], ["--optim.lr", "value"]),
        (["optim.lr", "1"], ["'optim.lr'", "--section.field"]),
        (["--optim", "3"], ["optim", "expected fields"]),
        (["--parallel.zero-stage", "3"], ["parallel.zero_stage", "0, 1 or 2"]),
        (["--precision.dtype", "fp8"], ["precision.dtype", "bf16"]),
        (["--training.max-steps", "0"], ["training.max_steps", "at least 1"]),
        (["--model.encoder.num-heads", "7"], ["model.encoder", "num_heads"]),
        (["--data.image.size", "32"], ["data.image.size", "model.image.image_size"]),
    ],
)
def test_mistakes_name_the_field(arguments: list[str], words: list[str]) -> None:
    with pytest.raises((RunError, ConfigError, DataError)) as caught:
        with_overrides(recipe("image-base"), arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_yaml_without_base_must_be_complete() -> None:
    with pytest.raises(RunError, match="run.yaml: field model is missing"):
        from_yaml("name: x", "run.yaml")


def test_partial_yaml_lies_over_a_recipe() -> None:
    config = from_yaml("optim: {lr: 5e-4}\n", "run.yaml", recipe("image-base"))
    assert config.optim.lr == 5e-4
    assert config.optim.betas == recipe("image-base").optim.betas


def test_unknown_recipe_suggests() -> None:
    with pytest.raises(RunError, match="did you mean image-base"):
        recipe("image-bas")


def test_differences_ignore_what_a_resume_may_change() -> None:
    saved = recipe("image-base")
    moved = with_overrides(
        saved, ["--data.path", "/elsewhere", "--parallel.zero-stage", "2", "--logging.every-steps", "1"]
    )
    assert differences(saved, moved, RESUME_MAY_CHANGE) == []
    changed = with_overrides(saved, ["--optim.lr", "2e-3"])
    assert differences(saved, changed, RESUME_MAY_CHANGE) == ["optim.lr: 0.001 -> 0.002"]


@pytest.mark.parametrize(("dp_size", "expected"), [(1, (64, 4)), (2, (64, 2)), (4, (64, 1))])
def test_microbatches_divide_the_global_batch(dp_size: int, expected: tuple[int, int]) -> None:
    training = with_overrides(recipe("image-base"), ["--training.microbatch-size", "64"]).training
    assert training.microbatches(dp_size) == expected


def test_indivisible_batches_are_refused() -> None:
    training = with_overrides(recipe("image-base"), ["--training.microbatch-size", "48"]).training
    with pytest.raises(RunError, match="not divisible by the 3"):
        training.microbatches(3)
    with pytest.raises(RunError, match="48 does not divide the 128"):
        training.microbatches(2)
