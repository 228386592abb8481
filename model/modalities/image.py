"""Image frontend: patches and fixed 2-D sine-cosine positions."""

from torch import Tensor, nn

from model.config import ImageConfig
from model.linear import LinearFactory
from model.masking import Views
from model.modalities.base import Frontend, kept_tokens
from model.positions import sincos_2d
from model.sections import EncoderConfig


class Patches(nn.Conv2d):
    """Square images -> one token per patch, row by row."""

    def __init__(self, config: ImageConfig, dim: int) -> None:
        """Args: size of the patches, width D."""
        super().__init__(config.in_channels, dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, source: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D)."""
        return super().forward(source).flatten(2).transpose(1, 2)


class ImageFrontend(Frontend):
    """Patches and a table of positions."""

    positions: Tensor
    """(1, T, D), added to the tokens."""

    def __init__(
        self, config: ImageConfig, encoder: EncoderConfig, linears: LinearFactory, *, has_local: bool = True
    ) -> None:
        """Args: the image side; the shared encoder; who makes linears; whether to make tokens itself."""
        super().__init__(config, encoder, linears, has_norm=True)
        self.local = Patches(config, encoder.dim) if has_local else None
        self.register_buffer("positions", sincos_2d(config.grid_size, encoder.dim))

    def positioned(self, tokens: Tensor, views: Views | None) -> Tensor:
        """The fixed positions are added before tokens are removed."""
        return kept_tokens(tokens + self.positions.to(tokens.dtype), views)
