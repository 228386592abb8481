"""Audio frontend: convolutions over the waveform, and convolutional positions."""

from torch import Tensor, nn
from torch.nn import functional

from model.config import AudioConfig
from model.convolution import ConvLayer1d
from model.linear import LinearFactory
from model.masking import Views, take
from model.modalities.base import Frontend
from model.rows import RowLinear, RowNorm, Rows
from model.sections import EncoderConfig

_NORM_EPS = 1e-5


class StridedConvolution(nn.Conv1d):
    """Convolution without bias or padding."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, rows: Rows) -> None:
        """Args: channels in and out, kernel and stride, which rows."""
        super().__init__(in_channels, out_channels, kernel, stride=stride, bias=False)
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C', L')."""
        (weight,) = self._rows.shared(self.weight)
        return self._conv_forward(x, weight, None)


class FeatureLayer(nn.Module):
    """Strided convolution, LayerNorm over channels, exact GELU (wav2vec 2.0 ``layer_norm`` mode)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, rows: Rows) -> None:
        """Args: channels in and out, kernel and stride, which rows."""
        super().__init__()
        self.convolution = StridedConvolution(in_channels, out_channels, kernel, stride, rows)
        self.norm = RowNorm(out_channels, _NORM_EPS, rows)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C', L')."""
        return functional.gelu(self.norm(self.convolution(x).transpose(1, 2)).transpose(1, 2))


class FeatureEncoder(nn.Module):
    """Waveforms -> one token per hop (20 ms in the released recipes).

    It takes as long as some blocks, so the ranks that share one model share its recordings, too.
    """

    def __init__(self, config: AudioConfig, dim: int, rows: Rows) -> None:
        """Args: the audio side, width D, how recordings lie over ranks."""
        super().__init__()
        self._rows = rows
        widths = [1, *(channels for channels, _, _ in config.conv_layers)]
        self.layers = nn.ModuleList(
            FeatureLayer(before, channels, kernel, stride, rows)
            for before, (channels, kernel, stride) in zip(widths, config.conv_layers, strict=False)
        )
        self.norm = RowNorm(widths[-1], _NORM_EPS, rows)
        self.projection = RowLinear(widths[-1], dim, rows)

    def forward(self, source: Tensor) -> Tensor:
        """(B, L) -> (B, T, D)."""
        x = self._rows.split(source).unsqueeze(1)
        for layer in self.layers:
            x = layer(x)
        return self._rows.join(self.projection(self.norm(x.transpose(1, 2))), len(source))


class AudioFrontend(Frontend):
    """Feature encoder, positions by convolution over what is not masked, ALiBi over time."""

    def __init__(
        self, config: AudioConfig, encoder: EncoderConfig, linears: LinearFactory, *, has_local: bool = True
    ) -> None:
        """Args: the audio side; the shared encoder; who makes linears; whether to make tokens itself."""
        super().__init__(config, encoder, linears, has_norm=True)
        self.local = FeatureEncoder(config, encoder.dim, linears.ends) if has_local else None
        self.positions = nn.Sequential(
            *(
                ConvLayer1d(encoder.dim, encoder.dim, config.positions_kernel, config.positions_groups, linears.ends)
                for _ in range(config.positions_depth)
            )
        )

    def positioned(self, tokens: Tensor, views: Views | None) -> Tensor:
        """The convolutions see removed tokens as zeros and padded ones as they are; kept tokens join un-zeroed."""
        if views is None:
            return tokens + self._convolved(tokens)
        every = views.spread(tokens)
        positions = self._convolved(every.masked_fill(views.mask.unsqueeze(-1), 0))
        return take(every, views.kept) + take(positions, views.kept)

    def _convolved(self, seen: Tensor) -> Tensor:
        return self.positions(seen.transpose(1, 2)).transpose(1, 2)
