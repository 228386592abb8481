"""Audio frontend: convolutions over the waveform, and convolutional positions."""

from torch import Tensor, nn
from torch.nn import functional

from model.config import AudioConfig
from model.convolution import ConvLayer1d
from model.linear import LinearFactory
from model.masking import Views
from model.modalities.base import Frontend, kept_tokens
from model.sections import EncoderConfig

_NORM_EPS = 1e-5


class FeatureLayer(nn.Module):
    """Strided convolution without bias, LayerNorm over channels, exact GELU (wav2vec 2.0 ``layer_norm`` mode)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        """Args: channels in and out, kernel and stride."""
        super().__init__()
        self.convolution = nn.Conv1d(in_channels, out_channels, kernel, stride=stride, bias=False)
        self.norm = nn.LayerNorm(out_channels, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C', L')."""
        return functional.gelu(self.norm(self.convolution(x).transpose(1, 2)).transpose(1, 2))


class FeatureEncoder(nn.Module):
    """Waveforms -> one token per hop (20 ms in the released recipes)."""

    def __init__(self, config: AudioConfig, dim: int) -> None:
        """Args: the audio side, width D."""
        super().__init__()
        widths = [1, *(channels for channels, _, _ in config.conv_layers)]
        self.layers = nn.ModuleList(
            FeatureLayer(before, channels, kernel, stride)
            for before, (channels, kernel, stride) in zip(widths, config.conv_layers, strict=False)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=_NORM_EPS)
        self.projection = nn.Linear(widths[-1], dim)

    def forward(self, source: Tensor) -> Tensor:
        """(B, L) -> (B, T, D)."""
        x = source.unsqueeze(1)
        for layer in self.layers:
            x = layer(x)
        return self.projection(self.norm(x.transpose(1, 2)))


class AudioFrontend(Frontend):
    """Feature encoder, positions by convolution over what is not masked, ALiBi over time."""

    def __init__(
        self, config: AudioConfig, encoder: EncoderConfig, linears: LinearFactory, *, has_local: bool = True
    ) -> None:
        """Args: the audio side; the shared encoder; who makes linears; whether to make tokens itself."""
        super().__init__(config, encoder, linears, has_norm=True)
        self.local = FeatureEncoder(config, encoder.dim) if has_local else None
        self.positions = nn.Sequential(
            *(
                ConvLayer1d(encoder.dim, encoder.dim, config.positions_kernel, config.positions_groups)
                for _ in range(config.positions_depth)
            )
        )

    def positioned(self, tokens: Tensor, views: Views | None) -> Tensor:
        """The convolutions see removed tokens as zeros and padded ones as they are; kept tokens join un-zeroed."""
        seen = tokens
        if views is not None:
            seen = tokens.repeat_interleave(len(views.mask) // len(tokens), dim=0)
            seen = seen.masked_fill(views.mask.unsqueeze(-1), 0)
        positions = self.positions(seen.transpose(1, 2)).transpose(1, 2)
        return kept_tokens(tokens, views) + kept_tokens(positions, views)
