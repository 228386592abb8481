"""RunConfig: YAML round trip, overrides, and one clear error for each kind of mistake."""

import dataclasses

import pytest

from data_pipelines.errors import DataError
from model.errors import ConfigError
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
            "--model.image.loss.scale",
            "1e-1",
            "--training.microbatch-size",
            "8",
            "--precision.dtype",
            "fp32",
        ],
    )
    assert config.training.max_steps == 7
    assert config.optim.betas == (0.9, 0.98)
    assert config.model.image is not None and config.model.image.loss.scale == 0.1
    assert config.training.microbatch_size == 8
    assert config.precision.dtype == "fp32"
    assert with_overrides(config, ["--training.microbatch-size", "null"]).training.microbatch_size is None


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("image-base", ["--optim.lrr", "1"], ["optim.lrr", "did you mean optim.lr?"]),
        ("image-base", ["--optm.lr", "1"], ["optm", "did you mean optim?"]),
        ("image-base", ["--optim.lr", "fast"], ["optim.lr", "number", "got 'fast'"]),
        ("image-base", ["--optim.lr", "-1"], ["optim.lr: must be above 0, got -1.0"]),
        ("image-base", ["--optim.betas", "[0.9, 1]"], ["optim.betas: must lie in [0, 1)"]),
        ("image-base", ["--optim.eps", "[1"], ["--optim.eps: '[1' is not a YAML value"]),
        ("image-base", ["--schedule.warmup-steps", "-1"], ["schedule.warmup_steps: must not be negative"]),
        ("image-base", ["--training.microbatch-size", "0"], ["training.microbatch_size: must be at least 1"]),
        ("image-base", ["--model.image.num-views", "0"], ["model.image.num_views: must be at least 1"]),
        ("image-base", ["--model.text.vocab-size", "9"], ["--model.text.vocab-size: image-base has no model.text"]),
        ("image-base", ["--optim.lr"], ["--optim.lr", "value"]),
        ("image-base", ["optim.lr", "1"], ["'optim.lr'", "--section.field"]),
        ("image-base", ["--optim", "3"], ["optim", "expected fields"]),
        ("image-base", ["--parallel.zero-stage", "4"], ["parallel.zero_stage", "should be 0, 1"]),
        ("image-base", ["--parallel.tp-size", "0"], ["parallel.tp_size", "at least 1"]),
        ("image-base", ["--precision.dtype", "fp8"], ["precision.dtype", "bf16"]),
        ("image-base", ["--training.max-steps", "0"], ["training.max_steps", "at least 1"]),
        ("image-base", ["--model.encoder.num-heads", "7"], ["model.encoder", "num_heads"]),
        ("image-base", ["--data.image.size", "32"], ["data.image.size", "model.image.image_size"]),
        ("image-base", ["--data.image", "null"], ["data.image: is null", "model.image is set"]),
        ("image-base", ["--model.image", "null"], ["model", "at least one of image, audio and text"]),
        (
            "audio-base",
            ["--data.audio.min-seconds", "0.02"],
            ["data.audio.min_seconds: 0.02 s are 0 frames", "model.audio.mask.prob"],
        ),
        (
            "audio-base",
            ["--data.audio.min-seconds", "0.03"],
            ["data.audio.min_seconds: 0.03 s are 1 frames", "mask.prob 0.5"],
        ),
        (
            "audio-base",
            ["--data.audio.min-seconds", "21"],
            ["data.audio.min_seconds", "ascending", "21.0 / 20.0 / 62.5"],
        ),
        ("audio-base", ["--data.audio.batch-seconds", "10"], ["data.audio", "batch_seconds", "2.0 / 20.0 / 10.0"]),
        ("audio-base", ["--data.audio.speed-factors", "[0.9, 3]"], ["data.audio.speed_factors", "between 0.5 and 2"]),
        ("audio-base", ["--model.audio.target.top-k", "13"], ["model.audio.target.top_k", "13", "encoder.depth 12"]),
        (
            "text-base",
            ["--data.text.tokens-per-sample", "513"],
            ["data.text.tokens_per_sample: 513", "model.text.max_positions 512"],
        ),
        ("text-base", ["--data.text.tokens-per-sample", "1"], ["data.text.tokens_per_sample", "at least 2"]),
        (
            "text-base",
            ["--model.text.mask.prob", "0.999"],
            ["data.text.tokens_per_sample: of 512 tokens", "model.text.mask.prob"],
        ),
        ("text-base", ["--model.text.vocab-size", "4"], ["model.text.vocab_size", "4 special tokens"]),
    ],
)
def test_mistakes_name_the_field(name: str, arguments: list[str], words: list[str]) -> None:
    with pytest.raises((RunError, ConfigError, DataError)) as caught:
        with_overrides(recipe(name), arguments)
    message = str(caught.value)
    assert "\n" not in message and "Value error" not in message
    for word in words:
        assert word in message


def test_fields_that_bound_each_other_are_set_in_any_order() -> None:
    shorter = ["--data.audio.batch-seconds=4", "--data.audio.max-seconds=4"]
    source = with_overrides(recipe("audio-base"), shorter).data.audio
    assert source is not None
    assert (source.min_seconds, source.max_seconds, source.batch_seconds) == (2, 4, 4)
    assert with_overrides(recipe("audio-base"), shorter[::-1]).data.audio == source


@pytest.mark.parametrize(("lacking", "present"), [("model", "data"), ("data", "model")])
def test_a_run_has_both_sides_of_a_modality(lacking: str, present: str) -> None:
    both, one = recipe("multimodal-tiny"), recipe("image-tiny")
    mixed = {present: getattr(both, present), lacking: dataclasses.replace(getattr(both, lacking), text=None)}
    with pytest.raises(RunError) as caught:
        dataclasses.replace(one, **mixed)
    assert str(caught.value) == (f"{lacking}.text: is null, but {present}.text is set; a run has both or neither")


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


def test_differences_of_a_run_over_several_modalities() -> None:
    saved = recipe("multimodal-base")
    moved = with_overrides(saved, ["--data.audio.path", "/elsewhere", "--data.text.microbatch-size", "4"])
    assert differences(saved, moved, RESUME_MAY_CHANGE) == []
    changed = with_overrides(saved, ["--data.text.batch-size", "32", "--data.audio.max-seconds", "15"])
    assert differences(saved, changed, RESUME_MAY_CHANGE) == [
        "data.audio.max_seconds: 20.0 -> 15.0",
        "data.text.batch_size: 64 -> 32",
    ]


@pytest.mark.parametrize(("dp_size", "expected"), [(1, (64, 4)), (2, (64, 2)), (4, (64, 1))])
def test_microbatches_divide_the_global_batch(dp_size: int, expected: tuple[int, int]) -> None:
    config = with_overrides(recipe("image-base"), ["--training.microbatch-size", "64"])
    assert config.microbatches("image", dp_size) == expected


def test_without_a_size_a_microbatch_is_the_whole_share_but_of_audio_one_planned_batch() -> None:
    assert recipe("image-base").microbatches("image", 2) == (128, 1)
    assert recipe("text-base").microbatches("text", 16) == (4, 1)
    assert recipe("audio-base").microbatches("audio", 2) == (1, 4)


def test_a_source_has_the_last_word_on_its_batches() -> None:
    config = with_overrides(
        recipe("text-base"),
        ["--data.text.batch-size", "24", "--data.text.microbatch-size", "3", "--training.microbatch-size", "4"],
    )
    assert config.units_per_step("text") == 24
    assert config.microbatches("text", 2) == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "dp_size", "message"),
    [
        ([], 3, "training.global_batch_size: 256 is not divisible by the 3 data-parallel ranks"),
        ([], 512, "training.global_batch_size: 256 is not divisible by the 512 data-parallel ranks"),
        (["--data.image.batch-size", "9"], 2, "data.image.batch_size: 9 is not divisible by the 2 data-parallel ranks"),
        (
            ["--training.microbatch-size", "48"],
            2,
            "training.microbatch_size: 48 does not divide the 128 samples per rank (global_batch_size 256 / 2 ranks)",
        ),
        (
            ["--data.image.batch-size", "8", "--data.image.microbatch-size", "3"],
            2,
            "data.image.microbatch_size: 3 does not divide the 4 samples per rank (batch_size 8 / 2 ranks)",
        ),
    ],
)
def test_indivisible_batches_are_refused(arguments: list[str], dp_size: int, message: str) -> None:
    with pytest.raises(RunError) as caught:
        with_overrides(recipe("image-base"), arguments).microbatches("image", dp_size)
    assert str(caught.value) == message
