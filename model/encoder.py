"""The post-LN transformer block and the trunk of shared blocks."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model.attention import Attention
from model.bias import LayerBias
from model.linear import LinearFactory
from model.rows import OwnDropout, RowNorm
from model.sections import EncoderConfig

Observe = Callable[[Tensor, Tensor], None]
"""Takes a block's output and its MLP's output."""
Compute = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Input and attention bias of a block -> its output and its MLP's output."""
Reseed = Callable[[int], None]
"""Starts the stream of random numbers (dropout) of a part of the network, by its number."""


def one_stream(part: int) -> None:
    """A ``Reseed`` that leaves all parts in one stream."""


class Mlp(nn.Module):
    """Two linears around an exact GELU, dropout after each."""

    def __init__(self, config: EncoderConfig, linears: LinearFactory) -> None:
        """Args: the encoder's config; who makes linears."""
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.up = linears.column(config.dim, hidden)
        self.down = linears.row(hidden, config.dim)
        self.dropout = OwnDropout(config.activation_dropout, linears)
        self.output_dropout = OwnDropout(config.activation_dropout, linears.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        return self.output_dropout(self.down(self.dropout(functional.gelu(self.up(x)))))


class Block(nn.Module):
    """Post-LN block (fairseq ``AltBlock`` with ``layer_norm_first: false``).

    Attributes:
        recompute: keep the block's input only, and compute the rest of what the backward pass needs a second time.
        compiled: a faster ``compute``, if there is one. No rows take the plain one: their shape would need a graph of
            its own.
    """

    recompute = False
    compiled: Compute | None = None

    def __init__(self, config: EncoderConfig, linears: LinearFactory) -> None:
        """Args: the encoder's config; who makes linears."""
        super().__init__()
        self.norm1 = RowNorm(config.dim, config.norm_eps, linears.hidden)
        self.attention = Attention(config, linears)
        self.norm2 = RowNorm(config.dim, config.norm_eps, linears.hidden)
        self.mlp = Mlp(config, linears)
        self.dropout = OwnDropout(config.post_mlp_dropout, linears.hidden)

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, D) -> the block's output and its MLP's output, both (N, T, D).

        N are the rows of ``LinearFactory.hidden``; ``bias`` is for all rows.
        """
        compute = self.compute if self.compiled is None or not len(x) else self.compiled
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(compute, x, bias, use_reentrant=False)
        return compute(x, bias)

    def compute(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """``forward`` in one piece."""
        hidden = self.norm1(x + self.attention(x, bias))
        inner = self.mlp(hidden)
        return self.norm2(hidden + self.dropout(inner)), inner


class Encoder(nn.Module):
    """Blocks that all modalities share, or a stretch of them."""

    def __init__(self, config: EncoderConfig, linears: LinearFactory, numbers: range) -> None:
        """Args: the encoder's config; who makes linears; which blocks there are here, the others are None."""
        super().__init__()
        self.dropout = OwnDropout(config.input_dropout, linears.hidden)
        self.blocks = nn.ModuleList(
            Block(config, linears) if number in numbers else None  # type: ignore[misc]
            for number in range(config.depth)
        )

    def forward(
        self,
        x: Tensor,
        bias: LayerBias,
        *,
        skipped: frozenset[int] = frozenset(),
        observe: Observe | None = None,
        reseed: Reseed = one_stream,
    ) -> Tensor:
        """Run the blocks that are here.

        Args:
            x: (N, T, D), input of the first of them.
            bias: attention bias by number of shared block.
            skipped: numbers of shared blocks that are left out.
            observe: called with every block's output and MLP output, in order.
            reseed: called with the number of every block before it runs.
        """
        if self.blocks[0] is not None:
            x = self.dropout(x)
        return run_blocks(self.blocks, x, bias, skipped, observe, reseed)


def run_blocks(
    blocks: Iterable[nn.Module | None],
    x: Tensor,
    bias: LayerBias,
    skipped: frozenset[int],
    observe: Observe | None = None,
    reseed: Reseed = one_stream,
) -> Tensor:
    """Blocks one after the other; arguments as of ``Encoder.forward``.

    A skipped block is run on no rows, so that its parameters get gradients that are exactly 0: an optimizer with
    flat shards, and hooks that wait for every gradient, then treat a step with skipped blocks as any other.
    """
    for number, block in enumerate(blocks):
        if block is None:
            continue
        if number in skipped:
            nothing, _ = block(x[:0], None)
            x = torch.cat([x, nothing])
            continue
        reseed(number)
        x, inner = block(x, bias(number))
        if observe is not None:
            observe(x, inner)
    return x
