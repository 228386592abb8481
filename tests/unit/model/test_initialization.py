"""Initial weights: the reference's statistics, tensor by tensor; nothing left undrawn; one seed, one model."""

import dataclasses

import pytest
import torch

from deploy.export.fairseq import fairseq_name
from model.config import ModelConfig
from model.data2vec import Data2Vec
from model.initialization import initialize
from pretrain.recipes.registry import recipe
from tests.golden.tables import init_stats

MODALITIES = ("image", "audio", "text")


def undrawn(config: ModelConfig) -> Data2Vec:
    """A model whose every parameter is nan."""
    model = Data2Vec(config)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    return model


@pytest.mark.parametrize("modality", MODALITIES)
def test_statistics_equal_the_references(modality: str) -> None:
    base = undrawn(recipe(f"{modality}-base").model)
    initialize(base, seed=1)
    expected = init_stats()[f"base_{'images' if modality == 'image' else modality}_only_task"]
    weights = {fairseq_name(name): value for name, value in base.state_dict().items()}
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        stats, numel = expected[name], value.numel()
        error = 5 / numel**0.5  # five sigma of a mean or deviation over numel draws
        scale = max(stats["std"], 1e-12)
        assert value.mean().item() == pytest.approx(stats["mean"], abs=2 * error * scale + 1e-9), name
        assert value.std().item() == pytest.approx(stats["std"], rel=2 * error, abs=1e-9), name
        bound = max(abs(stats["min"]), abs(stats["max"]))
        assert value.abs().max().item() <= 1.5 * bound + 1e-9, name  # a normal has no edge, a uniform a sharp one
        assert value.abs().max().item() >= 0.6 * bound, name


def test_padding_has_no_embedding() -> None:
    model = undrawn(recipe("text-tiny").model)
    initialize(model, 0)
    local = model.frontends["text"].local
    for table in (local.tokens, local.positions):
        assert table.weight[1].abs().max() == 0
        assert table.weight[2:].abs().min() > 0


def test_every_linear_of_a_longer_projection_is_reset_but_those_of_text() -> None:
    """The reference resets all linears of the decoders of images and audio (``DecoderBase.reset_parameters``)."""
    for modality, is_reset in (("audio", True), ("text", False)):
        config = recipe(f"{modality}-tiny").model
        side = config.modalities[modality]
        decoder = dataclasses.replace(side.decoder, projection_layers=2)
        config = dataclasses.replace(config, **{modality: dataclasses.replace(side, decoder=decoder)})
        model = undrawn(config)
        initialize(model, 0)
        for number in (0, 2):
            linear = model.decoders[modality].projection[number]
            bound = linear.in_features**-0.5
            assert (linear.bias.abs().max() > 0) == is_reset
            assert (0.9 * bound < linear.weight.abs().max() <= bound) == is_reset


@pytest.mark.parametrize("modality", MODALITIES)
def test_seed_decides_everything(modality: str) -> None:
    models = [undrawn(recipe(f"{modality}-tiny").model) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(seed * 7 + 5)  # the global generator must not matter
        initialize(model, seed)
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.blocks.0.mlp.up.weight"], other["encoder.blocks.0.mlp.up.weight"])
