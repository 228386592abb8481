"""Blocks of a data2vec 2.0 encoder, and its frontends: from raw input to tokens."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploy.export.data2vec2.configuration import Data2Vec2Config

_NORM_EPS = 1e-5
"""Of the norms inside the feature encoder, the convolutional positions and the token embedding."""
_PADDED = -1e30
"""Attention bias of a padded key: its weight is exactly 0."""


class Attention(nn.Module):
    """Multi-head self-attention with an additive bias."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Tokens (B, T, D) and bias, None or fp32, broadcastable to (B, H, T, T) -> (B, T, D)."""
        per_head = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1))  # (B, T, H, 3, D / H)
        query, key, value = per_head.permute(3, 0, 2, 1, 4).unbind(0)
        if bias is None or x.dtype == torch.float32:
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:  # fused attention would round the bias
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            attended = (scores.float() + bias).softmax(dim=-1).to(value.dtype) @ value
        # without the copy the ONNX exporter fails on lengths that vary: it expects other strides of fused attention
        joined = attended.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(2)
        return self.output(joined)


class Mlp(nn.Module):
    """Two linears around an exact GELU."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D) -> (B, T, D)."""
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """Post-LN transformer block; with gradient checkpointing it is computed again in the backward pass.

    Not a GradientCheckpointingLayer: the module of that class imports torchaudio, which images and text do without.
    """

    gradient_checkpointing = False
    """Set by transformers, together with the function, in every module that has it."""
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Tokens (B, T, D) -> (B, T, D)."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(self.compute, x, bias)
        return self.compute(x, bias)

    def compute(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See ``forward``."""
        x = self.norm1(x + self.attention(x, bias))
        return self.norm2(x + self.mlp(x))


class Frontend(nn.Module):
    """Raw input -> normalised tokens, extra tokens first; and the blocks that only this modality passes."""

    def __init__(self, config: Data2Vec2Config, has_norm: bool = True) -> None:
        super().__init__()
        self.config = config
        if config.num_extra_tokens:
            self.extra_tokens = nn.Parameter(torch.zeros(1, config.num_extra_tokens, config.hidden_size))
        if config.alibi:
            layers = config.num_hidden_layers if config.alibi["per_layer"] else 1
            heads = config.num_attention_heads if config.alibi["per_head"] else 1
            self.alibi_scale = nn.Parameter(torch.ones(layers, 1, heads, 1, 1))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if has_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_prenet_layers))

    def embed(self, source: Tensor) -> Tensor:
        """Raw input -> tokens with positions (B, T, D)."""
        raise NotImplementedError

    def mask(self, attention_mask: Tensor, num_tokens: int) -> Tensor:
        """The mask of the raw input -> (B, T) bool, True for real tokens."""
        return attention_mask.bool()

    def distances(self, num_tokens: int, device: torch.device) -> Tensor:
        """Distances between all pairs of tokens, (T, T) fp32."""
        places = torch.arange(num_tokens, device=device)
        return (places[:, None] - places).abs().float()

    def forward(self, source: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, extra + T, D) before the frontend's own blocks; mask (B, extra + T), True for real tokens."""
        x = self.embed(source)
        mask = None if attention_mask is None else self.mask(attention_mask, x.shape[1])
        num_extra = self.config.num_extra_tokens
        if num_extra:
            x = torch.cat([self.extra_tokens.expand(x.shape[0], -1, -1), x], dim=1)
            mask = None if mask is None else functional.pad(mask, (num_extra, 0), value=True)
        return self.norm(x), mask

    def biases(self, x: Tensor, mask: Tensor | None) -> list[Tensor | None]:
        """Attention bias of every block, the frontend's first: None, or broadcastable to (B, H, T', T'), fp32."""
        padded = None if mask is None else torch.zeros(mask.shape, device=x.device).masked_fill(~mask, _PADDED)
        padded = None if padded is None else padded[:, None, None, :]
        count, alibi, num_extra = self.config.num_hidden_layers, self.config.alibi, self.config.num_extra_tokens
        if not alibi:
            return [padded] * count
        slopes = alibi_slopes(self.config.num_attention_heads, x.device).view(1, -1, 1, 1)
        distances = -slopes * self.distances(x.shape[1] - num_extra, x.device)
        # extra tokens are at no distance from anything
        distances = functional.pad(distances, (num_extra, 0, num_extra, 0))
        scaled = [distances * scale for scale in self.alibi_scale.float().clamp_min(0)]
        scaled = scaled if padded is None else [bias + padded for bias in scaled]
        return scaled if alibi["per_layer"] else scaled * count


class ImageFrontend(Frontend):
    """Square images (B, C, S, S) -> one token per patch, row by row; fixed sine-cosine positions."""

    positions: Tensor

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config)
        self.grid_size, size = config.image_size // config.patch_size, config.patch_size
        self.local = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=size, stride=size)
        self.register_buffer("positions", sincos_positions(self.grid_size, config.hidden_size))

    def embed(self, source: Tensor) -> Tensor:
        """See ``Frontend``."""
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if source.shape[1:] != expected:
            raise ValueError(f"pixel_values: expected {('batch', *expected)}, got {tuple(source.shape)}")
        x = self.local(source.to(self.local.weight.dtype)).flatten(2).transpose(1, 2)
        return x + self.positions.to(x.dtype)  # transformers keeps buffers in fp32

    def distances(self, num_tokens: int, device: torch.device) -> Tensor:
        """Between cells of the grid."""
        cells = torch.arange(num_tokens, device=device)
        rows, columns = cells // self.grid_size, cells % self.grid_size
        down, across = (rows[:, None] - rows).abs().float(), (columns[:, None] - columns).abs().float()
        manhattan = (self.config.alibi or {})["distance"] == "manhattan"
        return down + across if manhattan else (down.square() + across.square()).sqrt()


class FeatureLayer(nn.Module):
    """Strided convolution, LayerNorm over channels, GELU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(in_channels, out_channels, kernel, stride=stride, bias=False)
        self.norm = nn.LayerNorm(out_channels, _NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C', L')."""
        return functional.gelu(self.norm(self.convolution(x).transpose(1, 2)).transpose(1, 2))


class FeatureEncoder(nn.Module):
    """Waveforms (B, L) -> frames (B, T, D)."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        widths = [1, *(channels for channels, _, _ in config.conv_layers)]
        self.layers = nn.ModuleList(
            FeatureLayer(before, *layer) for before, layer in zip(widths, config.conv_layers, strict=False)
        )
        self.norm = nn.LayerNorm(widths[-1], _NORM_EPS)
        self.projection = nn.Linear(widths[-1], config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L) -> (B, T, D)."""
        x = x.to(self.projection.weight.dtype).unsqueeze(1)
        for layer in self.layers:
            x = layer(x)
        return self.projection(self.norm(x.transpose(1, 2)))


class PositionLayer(nn.Conv1d):
    """Same-length convolution, LayerNorm over channels without affine, GELU: (B, D, T) -> (B, D, T)."""

    def forward(self, x: Tensor) -> Tensor:
        """An even kernel yields one frame too many."""
        y = super().forward(x)[:, :, : x.shape[2]]
        return functional.gelu(functional.layer_norm(y.movedim(1, -1), (y.shape[1],), eps=_NORM_EPS).movedim(-1, 1))


class AudioFrontend(Frontend):
    """Waveforms -> frames; positions by convolution, which sees padded frames as they are."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config)
        self.local = FeatureEncoder(config)
        depth, kernel, groups = config.conv_positions
        dim = config.hidden_size
        self.positions = nn.Sequential(
            *(PositionLayer(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(depth))
        )

    def embed(self, source: Tensor) -> Tensor:
        """See ``Frontend``."""
        x = self.local(source)
        return x + self.positions(x.transpose(1, 2)).transpose(1, 2)

    def mask(self, attention_mask: Tensor, num_tokens: int) -> Tensor:
        """As many frames are real as the real samples, counted, give."""
        lengths = attention_mask.long().sum(dim=-1)
        for _, kernel, stride in self.config.conv_layers:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return torch.arange(num_tokens, device=lengths.device) < lengths[:, None]


class TokenEmbedding(nn.Module):
    """Token numbers (B, T) -> embedding + learned position, LayerNorm: (B, T, D)."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        self.padding = config.pad_token_id
        rows = config.max_positions + self.padding + 1
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=self.padding)
        self.positions = nn.Embedding(rows, config.hidden_size, padding_idx=self.padding)
        self.norm = nn.LayerNorm(config.hidden_size, _NORM_EPS)

    def forward(self, source: Tensor) -> Tensor:
        """Positions count the tokens that are not padding, from 2 on; padding has row 1."""
        present = source.ne(self.padding)
        return self.norm(self.tokens(source) + self.positions(present.cumsum(dim=1) * present + self.padding))


class TextFrontend(Frontend):
    """Tokens -> embeddings; the input norm exists only before blocks of its own."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config, has_norm=config.num_prenet_layers > 0)
        self.local = TokenEmbedding(config)

    def embed(self, source: Tensor) -> Tensor:
        """See ``Frontend``."""
        if source.shape[1] > self.config.max_positions:
            raise ValueError(f"input_ids: at most {self.config.max_positions} tokens, got {source.shape[1]}")
        return self.local(source)


FRONTENDS = {"image": ImageFrontend, "audio": AudioFrontend, "text": TextFrontend}


def sincos_positions(grid_size: int, dim: int) -> Tensor:
    """Fixed positions (1, T, D): first half of the channels for the column, second for the row; sines, then cosines."""
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid_size, dtype=torch.float64).unsqueeze(1) * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = table.expand(grid_size, -1, -1), table.unsqueeze(1).expand(-1, grid_size, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).unsqueeze(0).float()


def alibi_slopes(num_heads: int, device: torch.device) -> Tensor:
    """Slope of every head (H,): geometric for a power of two, else filled up from the next power's (Press et al.)."""
    power = 2 ** math.floor(math.log2(num_heads))
    heads = torch.arange(1, power + 1, dtype=torch.float64, device=device)
    between = (2 * heads - 1)[: num_heads - power] / 2
    return torch.exp2(torch.cat([heads, between]) * (-8 / power)).float()
