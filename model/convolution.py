"""Convolutions that keep the length: layers of the decoders and of the convolutional positions."""

from torch import Tensor, nn
from torch.nn import functional

from model.rows import Rows

_NORM_EPS = 1e-5


class ConvLayer1d(nn.Conv1d):
    """Same-length convolution, LayerNorm over channels without affine, exact GELU (fairseq ``Decoder1d``)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, groups: int, rows: Rows) -> None:
        """Args: channels in and out, kernel, groups, which rows."""
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups)
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T) -> (N, C', T)."""
        assert self.bias is not None
        y = self._conv_forward(x, *self._rows.shared(self.weight, self.bias))
        return _norm_gelu(y[:, :, : x.shape[2]])  # an even kernel yields one frame too many


class ConvLayer2d(nn.Conv2d):
    """The same over a grid, with a square kernel (fairseq ``Decoder2d``)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, groups: int, rows: Rows) -> None:
        """Args: channels in and out, side of the kernel, groups, which rows."""
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups)
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        assert self.bias is not None
        y = self._conv_forward(x, *self._rows.shared(self.weight, self.bias))
        return _norm_gelu(y[:, :, : x.shape[2], : x.shape[3]])


def _norm_gelu(x: Tensor) -> Tensor:
    x = functional.layer_norm(x.movedim(1, -1), (x.shape[1],), eps=_NORM_EPS)
    return functional.gelu(x.movedim(-1, 1))
