"""Real photographs (scikit-learn's) cut into small files, and shards of them."""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from data_pipelines.config import DataConfig, ImageSourceConfig
from data_pipelines.shards.writer import Stored, write_shard

CLASSES = ("china", "flower")


@functools.cache
def photographs() -> tuple[NDArray[np.uint8], ...]:
    """Two pictures of 427 x 640 pixels."""
    return tuple(load_sample_images().images)


def encoded(number: int, *, width: int = 64, height: int = 48, format_name: str = "JPEG") -> bytes:
    """A cut-out of one of the pictures as a file; even numbers show china, odd ones a flower."""
    picture = photographs()[number % 2]
    generator = np.random.default_rng(number)
    top = generator.integers(picture.shape[0] - height + 1)
    left = generator.integers(picture.shape[1] - width + 1)
    buffer = io.BytesIO()
    Image.fromarray(picture[top : top + height, left : left + width]).save(buffer, format_name, quality=90)
    return buffer.getvalue()


def write_shards(folder: Path, *, num_shards: int = 3, samples_per_shard: int = 14) -> list[Stored]:
    """Fill a folder with indexed shards; returns their samples in order."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [
        Stored(f"{CLASSES[number % 2]}/{number:03d}", {"jpg": encoded(number), "cls": str(number % 2).encode()})
        for number in range(num_shards * samples_per_shard)
    ]
    for shard in range(num_shards):
        part = samples[shard * samples_per_shard : (shard + 1) * samples_per_shard]
        write_shard(folder / f"shard-{shard:06d}.tar", part)
    return samples


def data_config(path: Path | str, **changes: int) -> DataConfig:
    """32-pixel crops read in this process unless ``changes`` say otherwise."""
    return DataConfig(path=str(path), image=ImageSourceConfig(size=32), **{"num_workers": 0, **changes})


class Masks:
    """A ``Masking`` from a function: stream key -> (M, T) bool."""

    def __init__(self, of_sample: Callable[[int], Tensor]) -> None:
        self._of_sample = of_sample

    def num_tokens(self, length: int) -> int:
        return self._of_sample(0).shape[1]

    def masks(self, keys: Sequence[int], lengths: Sequence[int], padded_length: int | None = None) -> Tensor:
        assert len(keys) == len(lengths)
        return torch.stack([self._of_sample(key) for key in keys])


def random_masks(num_views: int = 2, num_tokens: int = 9) -> Masks:
    """Masks of 4 tokens that depend on the key alone."""

    def masks(key: int) -> Tensor:
        places = torch.rand(num_views, num_tokens, generator=torch.Generator().manual_seed(key)).argsort(dim=1)
        return places < 4

    return Masks(masks)


def flip_bit(path: Path, byte: int, bit: int = 0) -> None:
    """Damage one bit of a file in place."""
    with path.open("r+b") as stream:
        stream.seek(byte)
        value = stream.read(1)[0] ^ (1 << bit)
        stream.seek(byte)
        stream.write(bytes([value]))
