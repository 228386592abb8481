"""Additive attention bias: ALiBi by distance, and padding. Made from masks alone, so any pipeline stage can."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from model.config import ImageConfig
from model.linear import Cut, LinearFactory
from model.masking import Views
from model.positions import alibi_slopes, distances_1d, distances_2d
from model.sections import EncoderConfig, ModalityConfig

LayerBias = Callable[[int], Tensor | None]
"""Number of a block -> its attention bias."""
_PADDED = -1e30
"""Bias of a padded key. Its weight is exactly 0 in every precision; and a view that happens to keep nothing but
padding stays finite, as it would not with minus infinity."""


class AttentionBias:
    """What a modality adds to attention's scores. It holds no weights: ALiBi's scale is handed in.

    Attributes:
        scale_shape: (layers, 1, heads here, 1, 1) of ALiBi's scale; None if the modality has none.
        scale_cut: which part of the whole scale that is, if tensor parallelism cuts it.
    """

    def __init__(self, config: ModalityConfig, encoder: EncoderConfig, linears: LinearFactory) -> None:
        """Args: the modality; the shared encoder; over how many ranks its heads are cut."""
        self._linears = linears
        self._num_extra_tokens = config.num_extra_tokens
        self._alibi = config.alibi
        self._grid_size = config.grid_size if isinstance(config, ImageConfig) else None
        self._heads = Cut(0, linears.rank, linears.size, encoder.num_heads)
        self.scale_shape: tuple[int, ...] | None = None
        self.scale_cut: Cut | None = None
        if config.alibi is not None:
            layers = config.prenet_depth + encoder.depth if config.alibi.per_layer else 1
            heads = encoder.num_heads // linears.size if config.alibi.per_head else 1
            self.scale_shape = (layers, 1, heads, 1, 1)
            if config.alibi.per_head and linears.size > 1:
                self.scale_cut = Cut(2, linears.rank, linears.size, encoder.num_heads)

    def __call__(
        self, scale: Tensor | None, num_tokens: int, views: Views | None, padding: Tensor | None, device: torch.device
    ) -> LayerBias:
        """Bias by number of a block, prenet first: fp32, broadcastable to (N, heads here, ex + V, ex + V), or None.

        Args:
            scale: ALiBi's, ``scale_shape``; negative values act as 0.
            num_tokens: T.
            views: what each view keeps, or None to keep everything once.
            padding: (B, T) bool, True = padding; None if there is none.
            device: where the bias is made; making it there spares the host a wait.
        """
        padded = self._of_padding(views, padding)
        if self._alibi is None:
            return lambda number: padded
        assert scale is not None
        kept = torch.arange(num_tokens, device=device).unsqueeze(0) if views is None else views.kept
        slopes = self._heads.of(alibi_slopes(self._heads.whole, device)).view(1, -1, 1, 1)
        extra = (self._num_extra_tokens, 0, self._num_extra_tokens, 0)  # they are at no distance from anything
        whole = functional.pad(-slopes * self._distances(kept).unsqueeze(1), extra)
        if self.scale_cut is None:
            scale = self._linears.shared(scale)
        scales = scale.float().clamp_min(0)

        def scaled(number: int) -> Tensor:
            bias = whole * scales[number]
            return bias if padded is None else bias + padded

        if len(scales) > 1:
            return scaled
        once = scaled(0)
        return lambda number: once

    def _distances(self, tokens: Tensor) -> Tensor:
        """What the slopes are multiplied with: token numbers (N, V) -> (N, V, V) fp32. Made anew at every use, for
        a buffer would be rounded with the weights to bf16.
        """
        assert self._alibi is not None
        if self._grid_size is None:
            return distances_1d(tokens)
        return distances_2d(tokens, self._grid_size, self._alibi.distance)

    def _of_padding(self, views: Views | None, padding: Tensor | None) -> Tensor | None:
        """(N, 1, 1, ex + V) fp32, or None."""
        if padding is None:
            return None
        if views is not None:
            padding = views.spread(padding).gather(1, views.kept)
        bias = torch.zeros(padding.shape, device=padding.device).masked_fill_(padding, _PADDED)
        return functional.pad(bias, (self._num_extra_tokens, 0))[:, None, None, :]
