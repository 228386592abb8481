"""Runs over all modalities: multimodal-base is its three base recipes but for what is listed here; proportions."""

from typing import Any

import pytest

from data_pipelines.errors import DataError
from data_pipelines.mixture import interleaved
from model.accounting import num_parameters
from pretrain.config import with_overrides
from pretrain.errors import RunError
from pretrain.recipes.registry import recipe
from tests.unit.pretrain.recipes.fields import fields

MODALITIES = ("image", "audio", "text")
CHANGED_SIDES: dict[str, Any] = {
    "model.image.prenet_depth": 0,  # its 2 blocks are shared ones here
    "data.image.batch_size": 256,
    "data.image.microbatch_size": 16,
    "data.audio.batch_size": 8,
    "data.text.batch_size": 64,
    "data.text.microbatch_size": 8,
}
REST: dict[str, Any] = {
    "model.encoder.depth": 12,
    "model.encoder.dim": 768,
    "model.encoder.num_heads": 12,
    "model.encoder.mlp_ratio": 4.0,
    "model.encoder.norm_eps": 1e-5,
    "model.encoder.init_std": 0.02,
    "model.encoder.dropout": 0.0,
    "model.encoder.attention_dropout": 0.0,
    "model.encoder.activation_dropout": 0.0,
    "model.encoder.post_mlp_dropout": 0.0,
    "model.encoder.input_dropout": 0.0,
    "model.encoder.layer_dropout": 0.0,
    "optim.lr": 5e-4,
    "optim.betas": (0.9, 0.98),
    "optim.eps": 1e-6,
    "optim.weight_decay": 0.01,
    "optim.clip_norm": 4.0,
    "schedule.warmup_steps": 20_000,
    "ema.start": 0.9997,
    "ema.end": 0.99999,
    "ema.anneal_steps": 100_000,
    "precision.dtype": "bf16",
    "training.max_steps": 400_000,
    "training.microbatch_size": None,
    "training.seed": 1,
    "data.path": "",
    "data.num_workers": 4,
}


def of_modality(table: dict[str, Any], modality: str) -> dict[str, Any]:
    prefixes = (f"model.{modality}.", f"data.{modality}.")
    return {name: value for name, value in table.items() if name.startswith(prefixes)}


@pytest.mark.parametrize("modality", MODALITIES)
def test_sides_are_those_of_the_base_recipes(modality: str) -> None:
    alone, together = fields(recipe(f"{modality}-base")), fields(recipe("multimodal-base"))
    assert of_modality(together, modality) == of_modality(alone | CHANGED_SIDES, modality)


def test_the_rest_of_the_base_recipe() -> None:
    found = fields(recipe("multimodal-base"))
    assert {name: found[name] for name in REST} == REST
    assert {name for name in found if name.startswith("model.encoder.")} <= REST.keys()


def test_number_of_parameters() -> None:
    """Those of the three alone (data2vec2-facts.md 2.5) with one set of 12 blocks of 7,087,872 instead of three."""
    alone = 88_383_744 + 93_783_308 + 152_961_792
    assert num_parameters(recipe("multimodal-base").model) == alone - 2 * 12 * 7_087_872


@pytest.mark.parametrize(("name", "num_ranks"), [("multimodal-base", 8), ("multimodal-tiny", 2)])
def test_two_image_one_speech_one_text_microbatch_per_rank_and_step(name: str, num_ranks: int) -> None:
    run = recipe(name)
    numbers = {modality: run.microbatches(modality, num_ranks)[1] for modality in run.model.modalities}
    assert numbers == {"image": 2, "audio": 1, "text": 1}
    assert interleaved(numbers) == ["image", "audio", "text", "image"]


def test_a_step_takes_what_the_base_recipes_take() -> None:
    run = recipe("multimodal-base")
    for modality in MODALITIES:
        assert run.units_per_step(modality) == recipe(f"{modality}-base").units_per_step(modality)


@pytest.mark.parametrize("name", ["multimodal-base", "multimodal-tiny"])
def test_the_same_microbatches_on_fewer_ranks(name: str) -> None:
    """So that dropout, which is keyed by the microbatch, is the same too."""
    run = recipe(name)
    for modality in MODALITIES:
        sizes = {run.microbatches(modality, num_ranks)[0] for num_ranks in (1, 2)}
        assert len(sizes) == 1


@pytest.mark.parametrize("name", ["image", "audio", "text"])
def test_tiny_sides_are_those_of_the_tiny_recipes(name: str) -> None:
    alone, together = fields(recipe(f"{name}-tiny")), fields(recipe("multimodal-tiny"))
    sizes = {f"data.{name}.{field}": together[f"data.{name}.{field}"] for field in ("batch_size", "microbatch_size")}
    assert of_modality(together, name) == of_modality(alone | sizes, name)


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_modality_needs_its_own_path(modality: str) -> None:
    paths = [item for other in MODALITIES if other != modality for item in (f"--data.{other}.path", f"shards/{other}")]
    run = with_overrides(recipe("multimodal-tiny"), ["--data.path", "shards", *paths])
    assert [run.data.path_of(other) for other in MODALITIES if other != modality] == paths[1::2]
    with pytest.raises(DataError, match=rf"^data\.{modality}\.path: is empty; [^\n]*$"):
        run.data.path_of(modality)


def test_a_batch_that_does_not_divide_names_its_own_field() -> None:
    run = recipe("multimodal-base")
    with pytest.raises(RunError, match=r"^data\.audio\.batch_size: 8 is not divisible by the 16 data-parallel ranks$"):
        run.microbatches("audio", 16)
    with pytest.raises(RunError, match=r"^data\.text\.microbatch_size: 8 does not divide the 4 samples per rank"):
        run.microbatches("text", 16)
