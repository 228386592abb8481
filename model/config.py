"""What a data2vec 2.0 model is made of: shared encoder and modalities. Frozen dataclasses, no torch."""

from dataclasses import dataclass, field

from model.sections import EncoderConfig, ModalityConfig, require, require_share

PADDING_ID = 1
"""Token number of <pad>, as in fairseq's dictionaries."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig(ModalityConfig):
    """Image frontend: patches, fixed sin-cos positions."""

    image_size: int = 224
    """Side of the square input in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    in_channels: int = 3
    """Colour channels of the input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.image_size % self.patch_size == 0,
            "model.image.image_size",
            f"{self.image_size} must be a multiple of patch_size {self.patch_size}",
        )
        require(0 < self.num_kept < self.num_tokens, "model.image.mask.prob", "removes all or no tokens")
        require(self.mask.kind == "block", "model.image.mask.kind", "images know block masks only")
        require(self.decoder.projection_layers == 1, "model.image.decoder.projection_layers", "must be 1")

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
        """Patches V that a view keeps."""
        return self.num_tokens - self.mask.num_removed(self.num_tokens)


@dataclass(frozen=True, kw_only=True)
class AudioConfig(ModalityConfig):
    """Audio frontend: convolutional feature encoder over the waveform, projection, convolutional positions."""

    conv_layers: tuple[tuple[int, int, int], ...] = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)
    """Channels, kernel and stride of every layer of the feature encoder (``feature_encoder_spec``)."""
    positions_width: int = 95
    """Frames that the convolutional positions see in all (``conv_pos_width``)."""
    positions_groups: int = 16
    """Groups of those convolutions."""
    positions_depth: int = 5
    """Number of those convolutions; each has a kernel of max(3, width // depth)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.conv_layers) >= 1, "model.audio.conv_layers", "needs at least one layer")
        require(
            self.positions_depth >= 2, "model.audio.positions_depth", f"must be at least 2, got {self.positions_depth}"
        )
        _require_sequence(self, "model.audio")

    @property
    def positions_kernel(self) -> int:
        """Kernel of one convolution of the positions."""
        return max(3, self.positions_width // self.positions_depth)

    @property
    def receptive_field(self) -> int:
        """Waveform samples behind one frame."""
        field_size, hop = 1, 1
        for _, kernel, stride in self.conv_layers:
            field_size += (kernel - 1) * hop
            hop *= stride
        return field_size

    def num_frames(self, num_samples: int) -> int:
        """Frames T of a waveform."""
        for _, kernel, stride in self.conv_layers:
            num_samples = (num_samples - kernel) // stride + 1
        return max(num_samples, 0)


@dataclass(frozen=True, kw_only=True)
class TextConfig(ModalityConfig):
    """Text frontend: token embedding, learned positions, LayerNorm."""

    vocab_size: int = 50_265
    """Rows of the embedding table; ids 0 to 3 are <s>, <pad>, </s>, <unk>."""
    max_positions: int = 512
    """Longest input in tokens (``max_source_positions``)."""
    dropout: float = 0.0
    """Dropout of the embedded tokens; teacher and views see the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.vocab_size > 4, "model.text.vocab_size", f"must exceed the 4 special tokens, got {self.vocab_size}"
        )
        require_share(self.dropout, "model.text.dropout")
        _require_sequence(self, "model.text")


def _require_sequence(config: ModalityConfig, path: str) -> None:
    """What only images can do."""
    require(config.decoder.add_positions == "none", f"{path}.decoder.add_positions", "only images have fixed positions")
    require(config.loss.reconstruction_weight == 0, f"{path}.loss.reconstruction_weight", "only images have it")
    require(not config.mask.inverse, f"{path}.mask.inverse", "only images have inverse masks")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A student (and so a teacher): shared encoder, and per modality a frontend and a decoder."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The shared blocks."""
    image: ImageConfig | None = None
    """The image side; null for none."""
    audio: AudioConfig | None = None
    """The audio side; null for none."""
    text: TextConfig | None = None
    """The text side; null for none."""

    def __post_init__(self) -> None:
        require(len(self.modalities) >= 1, "model", "needs at least one of image, audio and text")
        for name, modality in self.modalities.items():
            top_k = modality.target.top_k
            require(
                1 <= top_k <= self.encoder.depth,
                f"model.{name}.target.top_k",
                f"{top_k} must lie between 1 and encoder.depth {self.encoder.depth}",
            )
        if self.image is not None and self.image.loss.reconstruction_weight > 0:
            require(
                self.encoder.dim == self.image.in_channels * self.image.patch_size**2,
                "model.image.loss.reconstruction_weight",
                "the reconstruction term needs encoder.dim = in_channels * patch_size^2",
            )

    @property
    def modalities(self) -> dict[str, ModalityConfig]:
        """The modalities that the model has, by name."""
        named = {"image": self.image, "audio": self.audio, "text": self.text}
        return {name: modality for name, modality in named.items() if modality is not None}
