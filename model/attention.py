"""Multi-head self-attention with an additive bias."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Fused query-key-value projection, attention, output projection.

    Rows of ``qkv`` are laid out per head (queries, keys, values of head 0, then head 1, ...), so that tensor
    parallelism can cut them.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        """Args: width D, heads H."""
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Tokens (N, T, D) and bias None or (N or 1, H, T, T) fp32 -> (N, T, D)."""
        heads = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        query, key, value = heads.unbind(0)
        mixed = attend(query, key, value, bias)
        return self.output(mixed.transpose(1, 2).flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention, (N, H, T, D / H) each, softmax in fp32."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _attend_by_matmul(query, key, value, bias)
    if bias is not None:
        bias = bias.to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _attend_by_matmul(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """On a CPU in bf16 the backward pass of torch's fused attention is several times slower than this."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = scores.float() if bias is None else scores.float() + bias
    return scores.softmax(dim=-1).to(value.dtype) @ value
