"""Text frontend: token embedding and learned positions."""

from torch import Tensor, nn

from model.config import PADDING_ID, TextConfig
from model.linear import LinearFactory
from model.masking import Views
from model.modalities.base import Frontend, kept_tokens
from model.sections import EncoderConfig

_NORM_EPS = 1e-5


class TokenEmbedding(nn.Module):
    """Token numbers -> embedding + learned position, LayerNorm, dropout (fairseq ``TextLocalEncoder``)."""

    def __init__(self, config: TextConfig, dim: int, linears: LinearFactory) -> None:
        """Args: the text side, width D, who makes linears."""
        super().__init__()
        self.tokens = linears.embedding(config.vocab_size, dim, PADDING_ID)
        self.positions = nn.Embedding(config.max_positions + PADDING_ID + 1, dim, padding_idx=PADDING_ID)
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, source: Tensor) -> Tensor:
        """(B, T) -> (B, T, D). Positions count the tokens that are not padding, from 2 on; padding has row 1."""
        present = source.ne(PADDING_ID)
        position = present.cumsum(dim=1) * present + PADDING_ID
        return self.dropout(self.norm(self.tokens(source) + self.positions(position)))


class TextFrontend(Frontend):
    """Token embedding; the input norm exists only before a prenet, as in the reference."""

    def __init__(
        self, config: TextConfig, encoder: EncoderConfig, linears: LinearFactory, *, has_local: bool = True
    ) -> None:
        """Args: the text side; the shared encoder; who makes linears; whether to make tokens itself."""
        super().__init__(config, encoder, linears, has_norm=config.prenet_depth > 0)
        self.local = TokenEmbedding(config, encoder.dim, linears) if has_local else None

    def positioned(self, tokens: Tensor, views: Views | None) -> Tensor:
        """The positions are in the tokens already."""
        return kept_tokens(tokens, views)
