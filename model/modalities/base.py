"""What the frontends of all modalities share: from tokens to the input of the shared blocks."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import AlibiConfig, EncoderConfig
from model.encoder import Block, LayerBias
from model.masking import Views


class Context(NamedTuple):
    """Input of the shared blocks."""

    x: Tensor
    """(N, ex + V, D), extra tokens first."""
    bias: LayerBias
    """Attention bias of a shared block by its number."""


class Frontend(nn.Module):
    """Base of the modalities: positions, gathering of kept tokens, extra tokens, input norm, prenet.

    A modality defines ``tokens`` (raw input -> (B, T, D)), ``positions`` and, with ALiBi, ``distances``.
    """

    positions: Tensor
    """(1, T, D), added to the tokens; a modality registers it."""

    def __init__(
        self, encoder: EncoderConfig, *, prenet_depth: int, num_extra_tokens: int, alibi: AlibiConfig | None
    ) -> None:
        """Args: the encoder's config; blocks, extra tokens and bias of this modality."""
        super().__init__()
        self.num_extra_tokens = num_extra_tokens
        self.alibi = alibi
        if num_extra_tokens:
            self.extra_tokens = nn.Parameter(torch.empty(1, num_extra_tokens, encoder.dim))
        if alibi is not None:
            layers = prenet_depth + encoder.depth if alibi.per_layer else 1
            heads = encoder.num_heads if alibi.per_head else 1
            scale = torch.full((layers, 1, heads, 1, 1), alibi.scale)
            self.alibi_scale = nn.Parameter(scale, requires_grad=alibi.learned)
        self.norm = nn.LayerNorm(encoder.dim, eps=encoder.norm_eps)
        self.blocks = nn.ModuleList(Block(encoder) for _ in range(prenet_depth))

    def tokens(self, source: Tensor) -> Tensor:
        """Raw input -> tokens (B, T, D) before positions."""
        raise NotImplementedError

    def distances(self, device: torch.device) -> Tensor:
        """ALiBi's bias (H, T, T) fp32 before the scale."""
        raise NotImplementedError

    def contextualize(self, tokens: Tensor, views: Views | None) -> Context:
        """Positions, masking, extra tokens, input norm, prenet (fairseq ``ModalitySpecificEncoder``).

        Args:
            tokens: (B, T, D).
            views: what each view keeps, or None to keep everything once.
        """
        x = tokens + self.positions.to(tokens.dtype)
        if views is not None:
            x = x.repeat_interleave(views.kept.shape[0] // x.shape[0], dim=0)
            x = x.gather(1, views.kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        if self.num_extra_tokens:
            x = torch.cat([self.extra_tokens.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        bias = self._layer_bias(views)
        x = self.norm(x)
        for number, block in enumerate(self.blocks):
            x, _ = block(x, bias(number))
        return Context(x, lambda number: bias(len(self.blocks) + number))

    def _layer_bias(self, views: Views | None) -> LayerBias:
        if self.alibi is None:
            return lambda number: None
        whole = self.distances(self.alibi_scale.device).unsqueeze(0)
        if views is not None:
            whole = whole.expand(views.kept.shape[0], -1, -1, -1)
            rows = views.kept[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[-1])
            whole = whole.gather(2, rows)
            columns = views.kept[:, None, None, :].expand(-1, whole.shape[1], whole.shape[2], -1)
            whole = whole.gather(3, columns)
        whole = functional.pad(whole, (self.num_extra_tokens, 0, self.num_extra_tokens, 0))
        scales = self.alibi_scale.float().clamp_min(0)
        if len(scales) == 1:
            once = whole * scales[0]
            return lambda number: once
        return lambda number: whole * scales[number]
