"""Multi-head self-attention with an additive bias."""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.linear import LinearFactory
from model.rows import OwnDropout
from model.sections import EncoderConfig


class Attention(nn.Module):
    """Fused query-key-value projection, attention, output projection.

    Rows of ``qkv`` are laid out per head (queries, keys, values of head 0, then head 1, ...), so that tensor
    parallelism can cut them: each rank then has some of the heads.
    """

    def __init__(self, config: EncoderConfig, linears: LinearFactory) -> None:
        """Args: width, heads and dropouts; who makes linears."""
        super().__init__()
        self.num_heads = config.num_heads // linears.size
        self._attention_dropout = config.attention_dropout
        self._linears = linears
        self.qkv = linears.column(config.dim, 3 * config.dim)
        self.output = linears.row(config.dim, config.dim)
        self.dropout = OwnDropout(config.dropout, linears.hidden)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Tokens (N, T, D) and bias None or broadcastable to (N, heads here, T, T), fp32 -> (N, T, D)."""
        heads = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        query, key, value = heads.unbind(0)
        dropout = self._attention_dropout if self.training else 0.0
        with self._linears.own_draws(x.device) if dropout else nullcontext():  # other ranks have other heads
            mixed = attend(query, key, value, bias, dropout=dropout)
        return self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))


AttentionKernel = Literal["scaled_dot_product_attention", "matmul"]
"""Torch's fused attention, or two products around a softmax."""


def attention_kernel(device_type: str, dtype: torch.dtype, *, biased: bool) -> AttentionKernel:
    """Which kernel computes attention; the same for student and teacher.

    Fused attention would round a bias to the precision of the queries: in bf16 it is added in fp32 between products.
    Without one that is still the faster way for bf16 on a CPU: torch 2.13, one thread, 12 heads of 64, forward and
    backward, fused attention took 8.7 times the CPU seconds at 16 x 40 tokens and 2.6 times at 2 x 197 (backward
    alone 12 and 3.2); in fp32 1.2 and 1.0 times.
    """
    exact = dtype in (torch.float32, torch.float64)
    return "scaled_dot_product_attention" if exact or (device_type != "cpu" and not biased) else "matmul"


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *, dropout: float = 0.0) -> Tensor:
    """Softmax attention, (N, H, T, D / H) each, softmax in fp32; ``dropout`` falls on its weights."""
    if attention_kernel(query.device.type, query.dtype, biased=bias is not None) == "matmul":
        return _attend_by_matmul(query, key, value, bias, dropout)
    if bias is not None:
        bias = bias.to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)


def _attend_by_matmul(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = scores.float() if bias is None else scores.float() + bias
    return functional.dropout(scores.softmax(dim=-1).to(value.dtype), dropout) @ value
