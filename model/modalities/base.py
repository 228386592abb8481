"""What the frontends of all modalities share: from raw input to the input of the shared blocks."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.bias import AttentionBias, LayerBias
from model.encoder import Block, run_blocks
from model.linear import LinearFactory, mark_cut
from model.masking import Views, take
from model.rows import OwnDropout, RowNorm
from model.sections import EncoderConfig, ModalityConfig


class Context(NamedTuple):
    """Input of the shared blocks."""

    x: Tensor
    """(N, ex + V, D), extra tokens first; N as of the blocks."""
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
        self._linears = linears
        self._bias = AttentionBias(config, encoder, linears)
        if config.num_extra_tokens:
            self.extra_tokens = nn.Parameter(torch.empty(1, config.num_extra_tokens, encoder.dim))
        if config.alibi is not None and self._bias.scale_shape is not None:
            scale = torch.full(self._bias.scale_shape, config.alibi.scale)
            self.alibi_scale = nn.Parameter(scale, requires_grad=config.alibi.learned)
            mark_cut(self.alibi_scale, self._bias.scale_cut)
        self.norm = RowNorm(encoder.dim, encoder.norm_eps, linears.ends) if has_norm else nn.Identity()
        self.dropout = OwnDropout(config.prenet_dropout, linears.ends)
        self.blocks = nn.ModuleList(Block(encoder, linears) for _ in range(config.prenet_depth))

    def tokens(self, source: Tensor) -> Tensor:
        """Raw input -> tokens (B, T, D) before positions."""
        assert self.local is not None, "this frontend reads another's tokens"
        tokens = self.local(source)
        assert isinstance(tokens, Tensor)
        return tokens

    def positioned(self, tokens: Tensor, views: Views | None) -> Tensor:
        """Tokens (B, T, D) with their positions, those that the views keep: (N, V, D); all of them without views.

        The views may be some of the batch's.
        """
        raise NotImplementedError

    def contextualize(
        self, tokens: Tensor, views: Views | None, padding: Tensor | None, skipped: frozenset[int] = frozenset()
    ) -> Context:
        """Positions, masking, extra tokens, input norm, prenet (fairseq ``ModalitySpecificEncoder``).

        Views are split by rows over the ranks that share one model; whole samples are encoded alike on all of them.

        Args:
            tokens: (B, T, D).
            views: what each view keeps, or None to keep everything once.
            padding: (B, T) bool, True = padding; None if there is none.
            skipped: prenet blocks that are left out.
        """
        ends, here = self._linears.ends, None
        if views is not None:
            (tokens,) = ends.shared(tokens)
            here = views.of(ends.here(len(views.mask)))
        x = self.positioned(tokens, here)
        if self.num_extra_tokens:
            (extra,) = ends.shared(self.extra_tokens)
            x = torch.cat([extra.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        x = self.dropout(self.norm(x))
        if views is not None:
            x = self._linears.into_blocks(x, len(views.mask))
        scale = getattr(self, "alibi_scale", None)
        bias = self._bias(scale, tokens.shape[1], views, padding, tokens.device)
        x = run_blocks(self.blocks, x, bias, skipped)
        return Context(x, lambda number: bias(len(self.blocks) + number))


def kept_tokens(tokens: Tensor, views: Views | None) -> Tensor:
    """Tokens (B, T, D) that the views keep (N, V, D); all of them without views."""
    return tokens if views is None else take(views.spread(tokens), views.kept)
