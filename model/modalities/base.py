"""What the frontends of all modalities share: from raw input to the input of the shared blocks."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.encoder import Block, LayerBias, run_blocks
from model.linear import Cut, LinearFactory, mark_cut
from model.masking import Views, take
from model.positions import alibi_slopes, distances_1d
from model.sections import EncoderConfig, ModalityConfig

_PADDED = -1e30
"""Bias of a padded key. Its weight is exactly 0 in every precision; and a view that happens to keep nothing but
padding stays finite, as it would not with minus infinity."""


class Context(NamedTuple):
    """Input of the shared blocks."""

    x: Tensor
    """(N, ex + V, D), extra tokens first."""
    bias: LayerBias
    """Attention bias of a shared block by its number."""


class Frontend(nn.Module):
    """Base of the modalities: gathering of kept tokens, extra tokens, input norm, prenet.

    Attributes:
        local: raw input -> tokens (B, T, D); None in a teacher that reads the student's tokens.
    """

    local: nn.Module | None

    def __init__(
        self, config: ModalityConfig, encoder: EncoderConfig, linears: LinearFactory, *, has_norm: bool
    ) -> None:
        """Args: this modality; the shared encoder; who makes linears; whether tokens are normed before the prenet."""
        super().__init__()
        self.num_extra_tokens = config.num_extra_tokens
        self.alibi = config.alibi
        self._heads = Cut(0, linears.rank, linears.size, encoder.num_heads)
        if config.num_extra_tokens:
            self.extra_tokens = nn.Parameter(torch.empty(1, config.num_extra_tokens, encoder.dim))
        if config.alibi is not None:
            layers = config.prenet_depth + encoder.depth if config.alibi.per_layer else 1
            heads = encoder.num_heads // linears.size if config.alibi.per_head else 1
            scale = torch.full((layers, 1, heads, 1, 1), config.alibi.scale)
            self.alibi_scale = nn.Parameter(scale, requires_grad=config.alibi.learned)
            if config.alibi.per_head and linears.size > 1:
                mark_cut(self.alibi_scale, Cut(2, linears.rank, linears.size, encoder.num_heads))
        self.norm = nn.LayerNorm(encoder.dim, eps=encoder.norm_eps) if has_norm else nn.Identity()
        self.dropout = nn.Dropout(config.prenet_dropout)
        self.blocks = nn.ModuleList(Block(encoder, linears) for _ in range(config.prenet_depth))

    def tokens(self, source: Tensor) -> Tensor:
        """Raw input -> tokens (B, T, D) before positions."""
        assert self.local is not None, "this frontend reads another's tokens"
        tokens = self.local(source)
        assert isinstance(tokens, Tensor)
        return tokens

    def positioned(self, tokens: Tensor, views: Views | None) -> Tensor:
        """Tokens (B, T, D) with their positions, those that the views keep: (N, V, D); all of them without views."""
        raise NotImplementedError

    def distances(self, tokens: Tensor) -> Tensor:
        """What ALiBi's slopes are multiplied with: token numbers (N, V) -> (N, V, V) fp32."""
        return distances_1d(tokens)

    def contextualize(
        self, tokens: Tensor, views: Views | None, padding: Tensor | None, skipped: frozenset[int] = frozenset()
    ) -> Context:
        """Positions, masking, extra tokens, input norm, prenet (fairseq ``ModalitySpecificEncoder``).

        Args:
            tokens: (B, T, D).
            views: what each view keeps, or None to keep everything once.
            padding: (B, T) bool, True = padding; None if there is none.
            skipped: prenet blocks that are left out.
        """
        x = self.positioned(tokens, views)
        if self.num_extra_tokens:
            x = torch.cat([self.extra_tokens.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        bias = self._layer_bias(tokens, views, padding)
        x = run_blocks(self.blocks, self.dropout(self.norm(x)), bias, skipped)
        return Context(x, lambda number: bias(len(self.blocks) + number))

    def _layer_bias(self, tokens: Tensor, views: Views | None, padding: Tensor | None) -> LayerBias:
        """Bias by number of a block, prenet first: that of the distances and that of padding."""
        padded = self._padding_bias(views, padding)
        if self.alibi is None:
            return lambda number: padded
        kept = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0) if views is None else views.kept
        slopes = self._heads.of(alibi_slopes(self._heads.whole, tokens.device)).view(1, -1, 1, 1)
        extra = (self.num_extra_tokens, 0, self.num_extra_tokens, 0)  # they are at no distance from anything
        whole = functional.pad(-slopes * self.distances(kept).unsqueeze(1), extra)
        scales = self.alibi_scale.float().clamp_min(0)

        def scaled(number: int) -> Tensor:
            bias = whole * scales[number]
            return bias if padded is None else bias + padded

        if len(scales) > 1:
            return scaled
        once = scaled(0)
        return lambda number: once

    def _padding_bias(self, views: Views | None, padding: Tensor | None) -> Tensor | None:
        """(N, 1, 1, ex + V) fp32, or None."""
        if padding is None:
            return None
        if views is not None:
            padding = padding.repeat_interleave(len(views.kept) // len(padding), dim=0).gather(1, views.kept)
        bias = torch.zeros(padding.shape, device=padding.device).masked_fill_(padding, _PADDED)
        return functional.pad(bias, (self.num_extra_tokens, 0))[:, None, None, :]


def kept_tokens(tokens: Tensor, views: Views | None) -> Tensor:
    """Tokens (B, T, D) that the views keep (N, V, D); all of them without views."""
    return tokens if views is None else take(tokens, views.kept)
