"""Convolutional decoders: full sequences with noise at the removed tokens -> predictions of the target."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import DecoderConfig
from model.masking import Views

_NORM_EPS = 1e-5


class ConvLayer2d(nn.Conv2d):
    """Same-size convolution, LayerNorm over channels without affine, exact GELU (fairseq ``Decoder2d``)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, groups: int) -> None:
        """Args: channels in and out, side of the kernel, groups."""
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups)
        self._trim = 1 - kernel % 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        x = super().forward(x)
        if self._trim:  # an even kernel yields one row and one column too many
            x = x[:, :, :-1, :-1]
        x = functional.layer_norm(x.movedim(1, -1), (x.shape[1],), eps=_NORM_EPS)
        return functional.gelu(x.movedim(-1, 1))


class Decoder2d(nn.Module):
    """Convolutions over the grid with residuals, then one linear."""

    def __init__(self, config: DecoderConfig, dim: int, grid_size: int) -> None:
        """Args: the decoder's config, width D of tokens and targets, side of the grid."""
        super().__init__()
        self._residual = config.residual
        self._grid_size = grid_size
        widths = [dim, *([config.dim] * config.num_layers)]
        self.layers = nn.ModuleList(
            ConvLayer2d(before, after, config.kernel, config.groups) for before, after in itertools.pairwise(widths)
        )
        self.projection = nn.Linear(config.dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Full sequences (N, T, D) -> predictions (N, T, D)."""
        x = x.transpose(1, 2).unflatten(2, (self._grid_size, self._grid_size))
        for layer in self.layers:
            y = layer(x)
            x = x + y if self._residual and x.shape == y.shape else y
        return self.projection(x.flatten(2).transpose(1, 2))


def fill_removed(kept: Tensor, noise: Tensor, views: Views) -> Tensor:
    """Full sequences in their order: kept tokens and, in place of removed ones, noise.

    Args:
        kept: (N, V, D), order of ``views.kept``.
        noise: (N, R, D), order of ``views.removed``.
    Returns:
        (N, T, D).
    """
    together = torch.cat([kept, noise], dim=1)
    return together.gather(1, views.restore.unsqueeze(-1).expand(-1, -1, kept.shape[-1]))
