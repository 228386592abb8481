"""Convolutional decoders: full sequences with noise at the removed tokens -> predictions of the target."""

import itertools

import torch
from torch import Tensor, nn

from model.convolution import ConvLayer1d, ConvLayer2d
from model.masking import Views, take
from model.positions import sincos_2d
from model.rows import OwnDropout, RowLinear, Rows
from model.sections import DecoderConfig


class Decoder(nn.Module):
    """Convolutions over the sequence, or the grid of an image, with residuals; then linears back to D."""

    positions: Tensor
    """(1, T, D), if they are added here."""

    def __init__(self, config: DecoderConfig, dim: int, grid_size: int | None, rows: Rows) -> None:
        """Args: its config, width D of tokens and targets, side of the grid or None for a sequence, which rows."""
        super().__init__()
        self._residual = config.residual
        self._where = config.add_positions
        self._grid_size = grid_size
        layer = ConvLayer1d if grid_size is None else ConvLayer2d
        widths = [dim, *([config.dim] * config.num_layers)]
        self.dropout = OwnDropout(config.input_dropout, rows)
        self.layers = nn.ModuleList(
            layer(before, after, config.kernel, config.groups, rows) for before, after in itertools.pairwise(widths)
        )
        self.projection = _projection(config, dim, rows)
        if config.add_positions != "none":
            assert grid_size is not None
            self.register_buffer("positions", sincos_2d(grid_size, dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Full sequences (N, T, D) -> predictions (N, T, D)."""
        x = x.transpose(1, 2)
        if self._grid_size is not None:
            x = x.unflatten(2, (self._grid_size, self._grid_size))
        for layer in self.layers:
            y = layer(x)
            x = x + y if self._residual and x.shape == y.shape else y
        return self.projection(x.flatten(2).transpose(1, 2))

    def fill(self, kept: Tensor, noise: Tensor, views: Views) -> Tensor:
        """Full sequences in their order: kept tokens (some dropped out) and, in place of removed ones, noise.

        Args:
            kept: (N, V, D), order of ``views.kept``.
            noise: (N, R, D), order of ``views.removed``.
        Returns:
            (N, T, D).
        """
        return take(torch.cat([self.dropout(kept), noise], dim=1), views.restore)

    def add_positions(self, full: Tensor, views: Views) -> Tensor:
        """Full sequences (N, T, D) with the fixed positions of images, where the configuration wants them."""
        if self._where == "none":
            return full
        positions = self.positions.to(full.dtype)
        return full + (positions * views.mask.unsqueeze(-1) if self._where == "masked" else positions)


def _projection(config: DecoderConfig, dim: int, rows: Rows) -> nn.Module:
    """One linear, or several with GELU between them."""
    between = [int(config.dim * config.projection_ratio)] * (config.projection_layers - 1)
    widths = [config.dim, *between, dim]
    first, *others = (RowLinear(before, after, rows) for before, after in itertools.pairwise(widths))
    if not others:
        return first
    return nn.Sequential(first, *itertools.chain.from_iterable((nn.GELU(), linear) for linear in others))
