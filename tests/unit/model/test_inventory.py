"""Names and shapes by arithmetic are those of the built networks, in order."""

import dataclasses

import pytest
import torch

from model.config import ModelConfig
from model.data2vec import Data2Vec
from model.inventory import Parameter, student_parameters, teacher_parameters
from model.linear import cut_of
from model.sections import AlibiConfig
from pretrain.recipes.registry import RECIPES, recipe
from tests.unit.model.inputs import MODALITIES, tiny


def built(config: ModelConfig, role: str, numbers: range | None = None) -> list[Parameter]:
    with torch.device("meta"):
        network = Data2Vec(config, role=role, numbers=numbers)  # type: ignore[arg-type]
    return [Parameter(name, tuple(p.shape), cut_of(p) is not None) for name, p in network.named_parameters()]


def assert_listed(config: ModelConfig, numbers: range | None = None) -> None:
    assert student_parameters(config, numbers) == built(config, "student", numbers)
    assert teacher_parameters(config, numbers) == built(config, "teacher", numbers)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str) -> None:
    assert_listed(recipe(name).model)


@pytest.mark.parametrize("alibi", [None, AlibiConfig(), AlibiConfig(per_layer=True, per_head=False)])
@pytest.mark.parametrize("scope", ["frontend", "context", "encoder"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_options(modality: str, scope: str, alibi: AlibiConfig | None) -> None:
    decoder = dataclasses.replace(recipe(f"{modality}-tiny").model.modalities[modality].decoder, dim=32)
    config = tiny(modality, alibi=alibi, prenet_depth=1, num_extra_tokens=2, decoder=decoder, teacher_scope=scope)
    assert_listed(config)


def test_stages_of_a_pipeline() -> None:
    config = recipe("multimodal-tiny").model
    for numbers in (range(1), range(1, 3), range(3, 4)):
        assert_listed(config, numbers)
