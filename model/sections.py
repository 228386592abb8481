"""The sections of a model's configuration that all modalities share: frozen dataclasses, no torch.

Field names follow the paper and fairseq where they exist; defaults are those of fairseq's
``Data2VecMultiConfig`` and its modality configs where all released recipes agree, else of ``base_images_only_task``.
"""

from dataclasses import dataclass, field
from typing import Literal

from model.errors import ConfigError

TeacherScope = Literal["frontend", "context", "encoder"]


def require(condition: bool, field_name: str, message: str) -> None:
    """Raise ConfigError unless ``condition``."""
    if not condition:
        raise ConfigError(f"{field_name}: {message}")


def require_share(value: float, field_name: str) -> None:
    """Raise ConfigError unless ``value`` is a probability below 1."""
    require(0.0 <= value < 1.0, field_name, f"must be at least 0 and below 1, got {value}")


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
    """Epsilon of the affine LayerNorms of the blocks and of the frontends' input norms."""
    init_std: float = 0.02
    """Standard deviation of the normal initialisation of every Linear ("BERT init")."""
    dropout: float = 0.0
    """Dropout after the attention's output projection (``encoder_dropout``)."""
    attention_dropout: float = 0.0
    """Dropout of attention weights."""
    activation_dropout: float = 0.0
    """Dropout after both linears of the MLP, inside the block's target."""
    post_mlp_dropout: float = 0.0
    """Dropout between the MLP and its residual, outside the block's target (``post_mlp_drop``)."""
    input_dropout: float = 0.0
    """Dropout of the input of the shared blocks (``dropout_input``)."""
    layer_dropout: float = 0.0
    """Probability that a step leaves out a shared block (``layerdrop``)."""

    def __post_init__(self) -> None:
        require(self.depth >= 1, "model.encoder.depth", f"must be at least 1, got {self.depth}")
        require(self.num_heads >= 1, "model.encoder.num_heads", f"must be at least 1, got {self.num_heads}")
        require(
            self.dim % self.num_heads == 0 and self.dim % 4 == 0,
            "model.encoder.dim",
            f"{self.dim} must be divisible by num_heads ({self.num_heads}) and by 4 (sin-cos positions)",
        )
        for name in ("dropout", "attention_dropout", "activation_dropout", "post_mlp_dropout", "input_dropout"):
            require_share(getattr(self, name), f"model.encoder.{name}")
        require_share(self.layer_dropout, "model.encoder.layer_dropout")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How the views of a sample are masked; every view keeps the same number of tokens."""

    kind: Literal["block", "random", "span"] = "block"
    """Blocks around random centres (images: squares), single random tokens, or wav2vec 2.0's spans."""
    prob: float = 0.8
    """Share of the tokens that is removed (R of the paper)."""
    adjust: float = 0.0
    """Added to the share that the block centres are drawn for (A); blocks only."""
    length: int = 3
    """Side of a block or length of a span in tokens (B)."""
    inverse: bool = False
    """Blocks mark the tokens that stay instead of those that go."""
    add_spans: bool = False
    """Make the counts of spans equal by removing more tokens instead of fewer (``add_masks``)."""

    def __post_init__(self) -> None:
        require(0.0 < self.prob < 1.0, "mask.prob", f"must lie between 0 and 1, got {self.prob}")
        require(
            self.kind == "random" or self.length >= 2,
            "mask.length",
            f"{self.kind} masks need at least 2, got {self.length}",
        )
        require(not self.inverse or self.kind == "block", "mask.inverse", f"{self.kind} masks have no inverse")

    def num_removed(self, num_tokens: int) -> int:
        """Tokens R that a view of T tokens lacks; ``int`` truncates as the reference's does.

        Exact for blocks and random tokens; of spans, which overlap, about the most.
        """
        if self.kind == "random" or self.inverse:
            return num_tokens - int(num_tokens * (1 - self.prob))
        return int(num_tokens * self.prob)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Convolutional decoder that predicts the target at the removed tokens."""

    dim: int = 384
    """Channels of the convolutions."""
    groups: int = 16
    """Groups of the convolutions."""
    kernel: int = 5
    """Side of the kernel; an even one is padded by half and trimmed by one."""
    num_layers: int = 5
    """Convolutions before the projection back to D."""
    residual: bool = True
    """Add a layer's input to its output where the channel counts agree."""
    projection_layers: int = 1
    """Linears of the projection, with GELU between them."""
    projection_ratio: float = 2.0
    """Width between the linears of the projection as a multiple of ``dim``."""
    add_positions: Literal["none", "masked", "all"] = "none"
    """Add the fixed positions (of images) to the decoder input nowhere, at removed tokens, or everywhere."""
    noise_std: float = 0.01
    """Standard deviation of the noise that stands in for a removed token."""
    input_dropout: float = 0.0
    """Dropout of the encoder's output before the noise joins it."""

    def __post_init__(self) -> None:
        require(self.num_layers >= 1, "decoder.num_layers", f"must be at least 1, got {self.num_layers}")
        require(self.dim % self.groups == 0, "decoder.groups", f"{self.groups} must divide decoder.dim {self.dim}")
        require(self.projection_layers >= 1, "decoder.projection_layers", "must be at least 1")
        require_share(self.input_dropout, "decoder.input_dropout")


@dataclass(frozen=True, kw_only=True)
class AlibiConfig:
    """Attention bias by distance, with a scale (``use_alibi_encoder`` of fairseq)."""

    distance: Literal["manhattan", "euclidean"] = "manhattan"
    """Distance between grid cells of images; in a sequence both are the difference of places."""
    scale: float = 1.0
    """Initial value of the scale; negative values act as 0."""
    learned: bool = True
    """Train the scale."""
    per_head: bool = True
    """One scale per head instead of one for all."""
    per_layer: bool = False
    """One scale per block (prenet first) instead of one for all."""


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """How the teacher's block outputs become the target."""

    top_k: int = 10
    """Average the last K shared blocks."""
    end_of_block: bool = False
    """Use the block's output instead of the output of its MLP."""
    batch_norm_layer: bool = False
    """Normalise each block's output per channel over batch and time: of a rank's microbatch, so that targets depend on
    its size and on the layout of the run."""
    instance_norm_layer: bool = True
    """Normalise each block's output per sample and channel over time."""
    layer_norm_layer: bool = False
    """Normalise each block's output over channels."""
    layer_norm: bool = False
    """Normalise the average over channels."""
    instance_norm: bool = False
    """Normalise the average per sample and channel over time."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Terms of a modality's loss and their weights."""

    weight: float = 1.0
    """Weight of all terms of this modality, beside those of the other modalities of a run."""
    beta: float = 0.0
    """0: squared error; otherwise the beta of smooth L1."""
    scale: float | None = None
    """Factor on every term; null means 1 / sqrt(D)."""
    regression_weight: float = 1.0
    """Weight of the regression at the removed tokens (``d2v_loss``)."""
    cls_weight: float = 0.0
    """Weight of the CLS term (``cls_loss``); 0 turns it off."""
    cls_rows: int = 256
    """Rows (samples x views) that the reference sums its CLS term over: its batch per GPU x M.
    The term is ``cls_weight * cls_rows * mean over all rows``, so it does not change with the layout."""
    reconstruction_weight: float = 0.0
    """Weight of the pixel reconstruction (``recon_loss``) of images; needs D = in_channels * patch_size^2."""


@dataclass(frozen=True, kw_only=True)
class ModalityConfig:
    """What the frontends of all modalities have: views, masks, extra tokens, prenet, decoder, targets, losses."""

    num_views: int = 8
    """Masked views M of each sample (``clone_batch``)."""
    prenet_depth: int = 0
    """Blocks of this modality before the shared ones; their outputs are never targets."""
    prenet_dropout: float = 0.0
    """Dropout after the input norm."""
    prenet_layer_dropout: float = 0.0
    """Probability that a step leaves out a prenet block."""
    num_extra_tokens: int = 0
    """Learned tokens put before the others; the last of them carries the CLS loss."""
    extra_tokens_zero_init: bool = True
    """Start the first extra token at zero instead of N(0, 1)."""
    alibi: AlibiConfig | None = None
    """Attention bias by distance; null for none."""
    teacher_scope: TeacherScope = "frontend"
    """Where the teacher's own weights begin: at the raw input, after the local encoder (``ema_local_encoder`` false),
    or at the shared blocks (``ema_encoder_only``). What lies before is the student's, without gradient."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """How the views are masked."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """How the removed tokens are predicted."""
    target: TargetConfig = field(default_factory=TargetConfig)
    """What is predicted."""
    loss: LossConfig = field(default_factory=LossConfig)
    """How errors are counted."""

    def __post_init__(self) -> None:
        require(self.num_views >= 1, "num_views", f"must be at least 1, got {self.num_views}")
        require_share(self.prenet_dropout, "prenet_dropout")
        require_share(self.prenet_layer_dropout, "prenet_layer_dropout")
        require(
            self.loss.cls_weight == 0 or self.num_extra_tokens > 0,
            "loss.cls_weight",
            "the CLS term needs num_extra_tokens >= 1",
        )
