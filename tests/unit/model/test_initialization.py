"""Initial weights: the reference's statistics, tensor by tensor; nothing left undrawn; one seed, one model."""

import pytest
import torch

from deploy.export.fairseq import fairseq_name
from model.data2vec import Data2Vec
from model.initialization import initialize
from pretrain.recipes.registry import recipe
from tests.golden.tables import init_stats


@pytest.fixture(scope="module")
def base() -> Data2Vec:
    model = Data2Vec(recipe("image-base").model)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    initialize(model, seed=1)
    return model


def test_statistics_equal_the_references(base: Data2Vec) -> None:
    expected = init_stats()
    for name, value in base.state_dict().items():
        stats, numel = expected[fairseq_name(name)], value.numel()
        error = 5 / numel**0.5  # five sigma of a mean or deviation over numel draws
        scale = max(stats["std"], 1e-12)
        assert value.mean().item() == pytest.approx(stats["mean"], abs=2 * error * scale + 1e-9), name
        assert value.std().item() == pytest.approx(stats["std"], rel=2 * error, abs=1e-9), name
        bound = max(abs(stats["min"]), abs(stats["max"]))
        assert value.abs().max().item() <= 1.5 * bound + 1e-9, name  # a normal has no edge, a uniform a sharp one
        assert value.abs().max().item() >= 0.6 * bound, name


def test_seed_decides_everything() -> None:
    config = recipe("image-tiny").model
    models = [Data2Vec(config) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(seed * 7 + 5)  # the global generator must not matter
        initialize(model, seed)
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.blocks.0.mlp.up.weight"], other["encoder.blocks.0.mlp.up.weight"])
