"""The post-LN transformer block and the trunk of shared blocks."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from model.attention import Attention
from model.config import EncoderConfig

LayerBias = Callable[[int], Tensor | None]
"""Number of a block, prenet first -> its attention bias."""


class Mlp(nn.Module):
    """Two linears around an exact GELU."""

    def __init__(self, config: EncoderConfig) -> None:
        """Args: the encoder's config."""
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.up = nn.Linear(config.dim, hidden)
        self.down = nn.Linear(hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """Post-LN block (fairseq ``AltBlock`` with ``layer_norm_first: false``)."""

    def __init__(self, config: EncoderConfig) -> None:
        """Args: the encoder's config."""
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config.dim, config.num_heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, D) -> the block's output and its MLP's output, both (N, T, D)."""
        hidden = self.norm1(x + self.attention(x, bias))
        inner = self.mlp(hidden)
        return self.norm2(hidden + inner), inner


class Encoder(nn.Module):
    """Blocks that all modalities share."""

    def __init__(self, config: EncoderConfig) -> None:
        """Args: the encoder's config."""
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, x: Tensor, bias: LayerBias, observe: Callable[[Tensor, Tensor], None] | None = None) -> Tensor:
        """Run all blocks.

        Args:
            x: (N, T, D).
            bias: attention bias by number of shared block.
            observe: called with every block's output and MLP output, in order.
        """
        for number, block in enumerate(self.blocks):
            x, inner = block(x, bias(number))
            if observe is not None:
                observe(x, inner)
        return x
