"""Recomputing blocks in the backward pass: the same gradients, dropout included, from fewer kept activations."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.unit.model.inputs import initialized, inputs, tiny


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_gradients_are_the_same_bit_for_bit_and_less_is_kept(modality: str) -> None:
    config = tiny(modality)
    encoder = dataclasses.replace(config.encoder, dropout=0.2, attention_dropout=0.2, post_mlp_dropout=0.2)
    config = dataclasses.replace(config, encoder=encoder)
    given, gradients, kept = inputs(config, modality), [], []
    for recompute in (False, True):
        model = initialized(config).train()
        if recompute:
            model.recompute_blocks()
        seen: dict[int, int] = {}

        def keep(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = given.student(model, modality)
        out.prediction.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        kept.append(sum(seen.values()))
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert kept[1] < 0.7 * kept[0]
