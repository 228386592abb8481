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
        self._grid_size = config.grid_size
        self._num_heads = encoder.num_heads

    def tokens(self, source: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D)."""
        return self.patch(source).flatten(2).transpose(1, 2)

    def distances(self, device: torch.device) -> Tensor:
        """(H, T, T) fp32; made anew, for a buffer would be rounded with the weights to bf16."""
        assert self.alibi is not None
        return alibi_2d(self._num_heads, self._grid_size, self.alibi.distance, device)
