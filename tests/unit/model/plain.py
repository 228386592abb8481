"""A second implementation of the method's parts, written from its description alone: fp64, loops, one row at a time.

It shares no code with ``model``; weights come by name from a state dict.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


class Plain:
    """The parts that all modalities have."""

    def __init__(self, weights: dict[str, Tensor], num_heads: int, eps: float) -> None:
        self.w = weights
        self.num_heads = num_heads
        self.eps = eps

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float | None = None) -> Tensor:
        return standard(x, -1, self.eps if eps is None else eps) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def block(self, name: str, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) tokens of one row and bias (H, T, T) -> the block's output and its MLP's."""
        width = x.shape[1] // self.num_heads
        packed = self.linear(f"{name}.attention.qkv", x)
        heads = []
        for head in range(self.num_heads):
            first = head * 3 * width
            query, key, value = (packed[:, first + i * width : first + (i + 1) * width] for i in range(3))
            heads.append((query @ key.T / math.sqrt(width) + bias[head]).softmax(-1) @ value)
        x = self.norm(f"{name}.norm1", x + self.linear(f"{name}.attention.output", torch.cat(heads, dim=-1)))
        inner = self.linear(f"{name}.mlp.down", functional.gelu(self.linear(f"{name}.mlp.up", x)))
        return self.norm(f"{name}.norm2", x + inner), inner

    def convolution(self, name: str, x: Tensor, groups: int) -> Tensor:
        """(T, C) -> (T, C'): padded by half the kernel, one place less at the end if that is even; norm, GELU."""
        weight, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        channels_out, channels_in, kernel = weight.shape
        out = bias.repeat(len(x), 1)
        for place in range(len(x)):
            for tap in range(kernel):
                source = place + tap - kernel // 2
                if not 0 <= source < len(x):
                    continue
                for group in range(groups):
                    rows = slice(group * channels_out // groups, (group + 1) * channels_out // groups)
                    seen = x[source, group * channels_in : (group + 1) * channels_in]
                    out[place, rows] += weight[rows, :, tap] @ seen
        return functional.gelu(standard(out, -1, 1e-5))

    def decode(self, modality: str, full: Tensor, num_layers: int, groups: int, *, residual: bool) -> Tensor:
        """A sequence (T, D) -> predictions (T, D)."""
        for layer in range(num_layers):
            y = self.convolution(f"decoders.{modality}.layers.{layer}", full, groups)
            full = full + y if residual and y.shape == full.shape else y
        name, number = f"decoders.{modality}.projection", 0
        if f"{name}.weight" in self.w:
            return self.linear(name, full)
        while f"{name}.{number}.weight" in self.w:
            full = self.linear(f"{name}.{number}", functional.gelu(full) if number else full)
            number += 2  # a GELU has a number too
        return full


def slopes(num_heads: int) -> list[float]:
    """ALiBi's slopes by its paper: geometric for 2^k heads, else with every second one of the next power."""
    power = 2 ** int(math.log2(num_heads))
    own = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    return own if power == num_heads else own + slopes(2 * power)[0::2][: num_heads - power]


def standard(x: Tensor, axis: int, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit (biased) variance along one axis."""
    centred = x - x.mean(axis, keepdim=True)
    return centred / (centred.square().mean(axis, keepdim=True) + eps).sqrt()


def smooth_l1(prediction: Tensor, target: Tensor, beta: float, scale: float) -> float:
    distance = (prediction - target).abs()
    inner = 0.5 * distance.square() / beta
    return scale * torch.where(distance < beta, inner, distance - beta / 2).sum().item()
