"""What a data2vec 2.0 model is made of: frozen dataclasses, no torch.

Field names follow the paper and fairseq where they exist; defaults are those of
``base_images_only_task.yaml`` unless a docstring says otherwise.
"""

from dataclasses import dataclass, field
from typing import Literal


class ConfigError(ValueError):
    """A model configuration that cannot be built; the message names the field and the fix."""


def _require(condition: bool, field_name: str, message: str) -> None:
    if not condition:
        raise ConfigError(f"{field_name}: {message}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The transformer blocks that all modalities share (post-LN)."""

    depth: int = 10
    """Shared blocks; blocks before them that belong to one modality are its prenet."""
    dim: int = 768
    """Width D of the tokens."""
    num_heads: int = 12
    """Attention heads H; D must be a multiple of it."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP as a multiple of D."""
    norm_eps: float = 1e-6
    """Epsilon of the affine LayerNorms of the blocks and of the frontend's input norm."""
    init_std: float = 0.02
    """Standard deviation of the normal initialisation of every Linear ("BERT init")."""

    def __post_init__(self) -> None:
        _require(self.depth >= 1, "model.encoder.depth", f"must be at least 1, got {self.depth}")
        _require(self.num_heads >= 1, "model.encoder.num_heads", f"must be at least 1, got {self.num_heads}")
        _require(
            self.dim % self.num_heads == 0 and self.dim % 4 == 0,
            "model.encoder.dim",
            f"{self.dim} must be divisible by num_heads ({self.num_heads}) and by 4 (sin-cos positions)",
        )


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Block masks (fairseq ``compute_block_mask_2d``), exactly equal counts in every mask."""

    prob: float = 0.8
    """Share of the tokens that is removed (R of the paper)."""
    adjust: float = 0.07
    """Added to the share that the block centres are drawn for (A)."""
    length: int = 3
    """Side of a block in tokens (B)."""
    inverse: bool = True
    """Blocks mark the tokens that stay instead of those that go."""

    def __post_init__(self) -> None:
        _require(0.0 < self.prob < 1.0, "mask.prob", f"must lie between 0 and 1, got {self.prob}")
        _require(self.length >= 2, "mask.length", f"block masks need at least 2, got {self.length}")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Convolutional decoder that predicts the target at the removed tokens."""

    dim: int = 768
    """Channels of the convolutions."""
    groups: int = 16
    """Groups of the convolutions."""
    kernel: int = 3
    """Side of the kernel; an even one is padded by half and trimmed by one."""
    num_layers: int = 6
    """Convolutions before the linear projection back to D."""
    residual: bool = True
    """Add a layer's input to its output where the channel counts agree."""
    add_positions: Literal["none", "masked", "all"] = "none"
    """Add the fixed positions to the decoder input nowhere, at removed tokens, or everywhere."""
    noise_std: float = 0.01
    """Standard deviation of the noise that stands in for a removed token."""

    def __post_init__(self) -> None:
        _require(self.num_layers >= 1, "decoder.num_layers", f"must be at least 1, got {self.num_layers}")
        _require(self.dim % self.groups == 0, "decoder.groups", f"{self.groups} must divide decoder.dim {self.dim}")


@dataclass(frozen=True, kw_only=True)
class AlibiConfig:
    """Attention bias by distance, with a scale (``use_alibi_encoder`` of fairseq)."""

    distance: Literal["manhattan", "euclidean"] = "manhattan"
    """Distance between grid cells."""
    scale: float = 1.0
    """Initial value of the scale; negative values act as 0."""
    learned: bool = True
    """Train the scale."""
    per_head: bool = True
    """One scale per head instead of one for all."""
    per_layer: bool = False
    """One scale per block (prenet first) instead of one for all."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Image frontend: patches, fixed sin-cos positions, extra tokens, prenet; and its masks and decoder."""

    image_size: int = 224
    """Side of the square input in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    in_channels: int = 3
    """Colour channels of the input."""
    prenet_depth: int = 2
    """Blocks of this modality before the shared ones; their outputs are never targets."""
    num_extra_tokens: int = 1
    """Learned tokens put before the patches; the last of them carries the CLS loss."""
    extra_tokens_zero_init: bool = False
    """Start the first extra token at zero instead of N(0, 1)."""
    alibi: AlibiConfig | None = None
    """2-D ALiBi; off in every released recipe."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """How the views are masked."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """How the removed tokens are predicted."""

    def __post_init__(self) -> None:
        _require(
            self.image_size % self.patch_size == 0,
            "model.image.image_size",
            f"{self.image_size} must be a multiple of patch_size {self.patch_size}",
        )
        _require(0 < self.num_kept < self.num_tokens, "model.image.mask.prob", "removes all or no tokens")

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Patches T of one image, without extra tokens."""
        return self.grid_size**2

    @property
    def num_kept(self) -> int:
        """Patches V that a view keeps; ``int`` as the reference truncates (fairseq ``compute_block_mask_2d``)."""
        if self.mask.inverse:
            return int(self.num_tokens * (1 - self.mask.prob))
        return self.num_tokens - int(self.num_tokens * self.mask.prob)


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """How the teacher's block outputs become the target."""

    top_k: int = 10
    """Average the last K shared blocks."""
    end_of_block: bool = False
    """Use the block's output instead of the output of its MLP."""
    batch_norm_layer: bool = False
    """Normalise each block's output per channel over batch and time."""
    instance_norm_layer: bool = True
    """Normalise each block's output per sample and channel over time."""
    layer_norm_layer: bool = False
    """Normalise each block's output over channels."""
    layer_norm: bool = True
    """Normalise the average over channels."""
    instance_norm: bool = False
    """Normalise the average per sample and channel over time."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Terms of the loss and their weights."""

    beta: float = 0.0
    """0: squared error; otherwise the beta of smooth L1."""
    scale: float | None = None
    """Factor on every term; null means 1 / sqrt(D)."""
    regression_weight: float = 1.0
    """Weight of the regression at the removed tokens (``d2v_loss``)."""
    cls_weight: float = 0.01
    """Weight of the CLS term (``cls_loss``); 0 turns it off."""
    cls_rows: int = 256
    """Rows (samples x views) that the reference sums its CLS term over: its batch per GPU x M.
    The term is ``cls_weight * cls_rows * mean over all rows``, so it does not change with the layout."""
    reconstruction_weight: float = 0.0
    """Weight of the pixel reconstruction (``recon_loss``); needs D = in_channels * patch_size^2."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A student (and so a teacher): shared encoder, one frontend and decoder per modality."""

    num_views: int = 16
    """Masked views M of each sample (``clone_batch``)."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The shared blocks."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """The image side."""
    target: TargetConfig = field(default_factory=TargetConfig)
    """What is predicted."""
    loss: LossConfig = field(default_factory=LossConfig)
    """How errors are counted."""

    def __post_init__(self) -> None:
        _require(self.num_views >= 1, "model.num_views", f"must be at least 1, got {self.num_views}")
        _require(
            1 <= self.target.top_k <= self.encoder.depth,
            "model.target.top_k",
            f"{self.target.top_k} must lie between 1 and encoder.depth {self.encoder.depth}",
        )
        _require(
            self.loss.cls_weight == 0 or self.image.num_extra_tokens > 0,
            "model.loss.cls_weight",
            "the CLS term needs model.image.num_extra_tokens >= 1",
        )
        _require(
            self.loss.reconstruction_weight == 0
            or self.encoder.dim == self.image.in_channels * self.image.patch_size**2,
            "model.loss.reconstruction_weight",
            "the reconstruction term needs encoder.dim = in_channels * patch_size^2",
        )
