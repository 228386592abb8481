"""Where the samples come from and how they are read: frozen dataclasses, no torch."""

from dataclasses import dataclass

from data_pipelines.errors import DataError


def _require(condition: bool, field_name: str, message: str) -> None:
    if not condition:
        raise DataError(f"{field_name}: {message}")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What the sources of all modalities share. A unit is a sample, of audio a planned batch."""

    path: str = ""
    """Shards of this modality, as data.path; empty in a run of one modality, which reads data.path."""
    batch_size: int | None = None
    """Units of one optimizer step over all ranks; null: training.global_batch_size."""
    microbatch_size: int | None = None
    """Units of one forward pass of one rank; null: training.microbatch_size."""


@dataclass(frozen=True, kw_only=True)
class ImageSourceConfig(SourceConfig):
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
        _require(self.channels in (1, 3), "data.image.channels", f"must be 1 or 3, got {self.channels}")
        _require(
            len(self.mean) == len(self.std) == self.channels,
            "data.image.mean / std",
            f"need {self.channels} values each, one per channel",
        )


@dataclass(frozen=True, kw_only=True)
class AudioSourceConfig(SourceConfig):
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

    def __post_init__(self) -> None:
        _require(self.sample_rate >= 1, "data.audio.sample_rate", f"must be at least 1, got {self.sample_rate}")
        _require(
            0 < self.min_seconds <= self.max_seconds <= self.batch_seconds,
            "data.audio.min_seconds / max_seconds / batch_seconds",
            f"must be positive and ascending, got {self.min_seconds} / {self.max_seconds} / {self.batch_seconds}",
        )
        _require(
            all(0.5 <= factor <= 2 for factor in self.speed_factors),
            "data.audio.speed_factors",
            f"must lie between 0.5 and 2, got {self.speed_factors}",
        )


@dataclass(frozen=True, kw_only=True)
class TextSourceConfig(SourceConfig):
    """Blocks of token numbers, as ``d2v prepare text`` cuts them."""

    tokens_per_sample: int = 512
    """Tokens of a sample, the leading <s> included; a shorter block (of a tiny corpus) is padded."""

    def __post_init__(self) -> None:
        _require(self.tokens_per_sample >= 2, "data.text.tokens_per_sample", "must be at least 2")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The sources of a run, one per modality, and how they are loaded."""

    path: str = ""
    """Shards of a run of one modality: a folder, one .tar, or a brace range such as
    'train/shard-{000000..000146}.tar'."""
    image: ImageSourceConfig | None = None
    """Images; null if the run has none."""
    audio: AudioSourceConfig | None = None
    """Audio; null if the run has none."""
    text: TextSourceConfig | None = None
    """Text; null if the run has none."""
    num_workers: int = 2
    """Worker processes per rank and modality; 0 reads in the training process."""
    prefetch_batches: int = 2
    """Batches that every worker prepares ahead."""
    max_bad_samples: int = 0
    """Samples with a wrong CRC or undecodable content that a rank may replace before the run stops."""

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The sources that the run has, by modality."""
        named = {"image": self.image, "audio": self.audio, "text": self.text}
        return {modality: source for modality, source in named.items() if source is not None}

    def path_of(self, modality: str) -> str:
        """Where the shards of a modality lie.

        Raises:
            DataError: if the configuration does not say so; names the field.
        """
        sources = self.sources
        if sources[modality].path:
            return sources[modality].path
        field = "data.path" if len(sources) == 1 else f"data.{modality}.path"
        _require(len(sources) == 1 and self.path != "", field, "is empty; " + _HOW_TO_NAME_SHARDS)
        return self.path


_HOW_TO_NAME_SHARDS = "give it a folder of shards, one .tar, or a brace range of them"
