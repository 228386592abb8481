"""Linears for ZeRO stage 3: autograd keeps a reference to the weight, not its gathered values."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.linear import PlainLinears


class ReleasingLinears(PlainLinears):
    """Torch's linears with a backward of their own.

    Torch saves a transposed view of a linear's weight for the backward pass; a view holds the gathered values even
    after DeepSpeed has let go of them, so that all weights would be whole by the end of the forward pass. The
    parameter itself may be saved: DeepSpeed gathers it again before the backward pass reads it. Megatron's linears
    already do so, as do convolutions and norms.
    """

    def column(self, in_features: int, out_features: int) -> nn.Module:
        """Saves its weight as a parameter."""
        return _Linear(in_features, out_features)

    def row(self, in_features: int, out_features: int) -> nn.Module:
        """The same: nothing is cut."""
        return _Linear(in_features, out_features)


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return _LinearFunction.apply(x, self.weight, self.bias)


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        rows = gradient.flatten(0, -2)
        return gradient @ weight, rows.t() @ x.flatten(0, -2), rows.sum(0)
