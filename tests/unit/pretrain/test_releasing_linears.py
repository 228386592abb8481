"""Linears for ZeRO 3: torch's numbers, and nothing but the parameter is kept for the backward pass."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from model.linear import PLAIN
from pretrain.parallel.linears import ReleasingLinears


def pair(make: str) -> tuple[nn.Linear, nn.Linear]:
    plain, releasing = getattr(PLAIN, make)(6, 4), getattr(ReleasingLinears(), make)(6, 4)
    releasing.load_state_dict(plain.state_dict())
    return plain, releasing


@pytest.mark.parametrize("make", ["column", "row"])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (0, 3, 6)])
def test_output_and_gradients_are_torchs(make: str, shape: tuple[int, ...]) -> None:
    x, results = torch.randn(shape), []
    for linear in pair(make):
        leaf = x.clone().requires_grad_()
        y = linear(leaf)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad, linear.weight.grad, linear.bias.grad))
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


def test_freed_weights_are_freed_between_forward_and_backward() -> None:
    alive = []
    for linear in pair("column"):
        y = linear(torch.ones(1, 2, 6, requires_grad=True))
        kept, values = StorageWeakRef(linear.weight.untyped_storage()), linear.weight.detach().clone()
        linear.weight.data = torch.empty(0)  # as DeepSpeed does after the forward pass
        alive.append(not kept.expired())
        linear.weight.data = values  # gathered anew
        y.sum().backward()
        torch.testing.assert_close(linear.weight.grad, torch.full((4, 6), 2.0), rtol=0, atol=0)
    assert alive == [True, False]
