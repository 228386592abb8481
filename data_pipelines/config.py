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
