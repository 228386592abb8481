"""Where the samples come from and how they are read: frozen dataclasses, no torch."""

from dataclasses import dataclass, field

from data_pipelines.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ImageTransformConfig:
    """Bytes of an image -> normalised array, as the reference does for ImageNet."""

    size: int = 224
    """Side of the result in pixels."""
    channels: int = 3
    """3 decodes to RGB, 1 to grey."""
    crop: bool = True
    """RandomResizedCrop; false resizes the short side and crops the centre (nothing if the size fits)."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of the area that a crop may cover."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio (width / height) that a crop may have."""
    flip_prob: float = 0.5
    """Probability of a horizontal flip."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Subtracted per channel, on the scale 0..1."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Divided by per channel, on the scale 0..1."""
    max_pixels: int = 64_000_000
    """A larger image (by its header) is refused before it is decoded."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise DataError(f"data.image.channels: must be 1 or 3, got {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise DataError(f"data.image.mean / std: need {self.channels} values each, one per channel")


@dataclass(frozen=True, kw_only=True)
class AudioTransformConfig:
    """Bytes of a recording -> normalised waveform, and how waveforms of one batch are chosen and cut."""

    sample_rate: int = 16_000
    """Hertz that every recording is resampled to."""
    min_seconds: float = 2.0
    """Shorter recordings are never drawn."""
    max_seconds: float = 20.0
    """Longer recordings are cut to a random window of this length."""
    batch_seconds: float = 62.5
    """Most seconds in one planned batch: its longest recording times their number."""
    crop_to_shortest: bool = True
    """Cut every recording of a batch to its shortest, as the reference does; false pads to the longest."""
    normalize: bool = True
    """Shift and scale the whole recording to mean 0 and variance 1 before it is cut."""
    speed_factors: tuple[float, ...] = ()
    """Play each recording at one of these speeds, drawn anew every epoch; none by default, as in the reference."""
    noise_prob: float = 0.0
    """Probability of white noise."""
    noise_snr_db: tuple[float, float] = (10.0, 40.0)
    """Signal-to-noise ratio of that noise is drawn from this range."""
    max_decoded_seconds: float = 600.0
    """A longer recording (by its header) is refused before it is decoded."""


@dataclass(frozen=True, kw_only=True)
class TextTransformConfig:
    """Blocks of token numbers, as ``d2v prepare text`` cuts them."""

    tokens_per_sample: int = 512
    """Tokens of a sample, the leading <s> included; shorter blocks (the last of a shard) are padded."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """One source of samples and how it is loaded."""

    path: str = ""
    """A folder of shards, one .tar, or a brace range such as 'train/shard-{000000..000146}.tar'."""
    image: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    """Image transforms."""
    num_workers: int = 2
    """Worker processes per rank; 0 reads in the training process."""
    prefetch_batches: int = 2
    """Batches that every worker prepares ahead."""
    max_bad_samples: int = 0
    """Samples with a wrong CRC or undecodable content that a rank may replace before the run stops."""
