"""Image frontend: patches and fixed 2-D sine-cosine positions."""

import torch
from torch import Tensor, nn

from model.config import EncoderConfig, ImageConfig
from model.modalities.base import Frontend
from model.positions import alibi_2d, sincos_2d


class ImageFrontend(Frontend):
    """Square images -> one token per patch, row by row."""

    def __init__(self, config: ImageConfig, encoder: EncoderConfig) -> None:
        """Args: the image side and the shared encoder."""
        super().__init__(
            encoder,
            prenet_depth=config.prenet_depth,
            num_extra_tokens=config.num_extra_tokens,
            alibi=config.alibi,
        )
        size = config.patch_size
        self.patch = nn.Conv2d(config.in_channels, encoder.dim, kernel_size=size, stride=size)
        self.register_buffer("positions", sincos_2d(config.grid_size, encoder.dim))
        if config.alibi is not None:
            bias = alibi_2d(encoder.num_heads, config.grid_size, config.alibi.distance)
            self.register_buffer("_distances", bias, persistent=False)

    _distances: Tensor

    def tokens(self, source: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D)."""
        return self.patch(source).flatten(2).transpose(1, 2)

    def distances(self) -> Tensor:
        """(H, T, T) fp32."""
        return self._distances.to(torch.float32)
