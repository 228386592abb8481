"""Pages stamped with one handwritten digit: real data that ships inside scikit-learn, no download.

Every image is a 28 x 28 window on a page that is stamped full with ONE 8 x 8 sample of the UCI digits, each copy with
its own size, angle and place. What visible and hidden patches share is then the shape of the glyph, which is why a
masked predictor learns it; raw pixels hardly tell the classes apart. Source digits are split first, so no
handwriting of the test split is ever seen in training; images for pretraining are drawn without looking at a label.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.jobs import Advance
from data_pipelines.order import stream_key
from data_pipelines.prepare.folder import Plan
from data_pipelines.shards.writer import Stored

SIDE = 28
NUM_TRAIN_DIGITS = 1300
"""Source digits behind ``pretrain`` and ``bank``; the other 497 are behind ``test``."""
_SPLIT_SEED = 0
_PITCH = 11.0  # pixels from stamp to stamp
_CELLS = 4  # per axis: enough to cover the window at any phase
_SCALE = (0.8, 1.1)  # side of a stamp in pitches
_ANGLE = (-25.0, 25.0)  # degrees
_JITTER = 2.5  # pixels per axis
_CONTRAST = (0.7, 1.0)
_NOISE_STD = 0.1
_IMAGES_PER_SHARD = 2000
_IMAGES_AT_ONCE = 250


class Split(NamedTuple):
    """One folder of images."""

    number: int
    """Keys the random draws."""
    name: str
    has_labels: bool


PRETRAIN, BANK, TEST = Split(0, "pretrain", False), Split(1, "bank", True), Split(2, "test", True)


class Page(NamedTuple):
    """One image to be made."""

    key: str
    number: int


def plan_digits(split: Split, num_images: int, *, seed: int) -> Plan:
    """The images of one split as grey PNG, with labels where the split has them.

    Args:
        split: PRETRAIN, BANK or TEST.
        num_images: how many.
        seed: keys every draw together with split and image number.
    """
    options = f"digits, split {split.name}, {num_images} images, seed {seed}"
    pages = [Page(f"{split.name}-{number:07d}", number) for number in range(num_images)]
    return Plan(
        kind="digits",
        made_from=options,
        fingerprint=hashlib.sha256(f"stamp28d 1: {options}".encode()).hexdigest(),
        classes=[str(digit) for digit in range(10)] if split.has_labels else [],
        shards=[pages[start : start + _IMAGES_PER_SHARD] for start in range(0, num_images, _IMAGES_PER_SHARD)],
        make=lambda some, advance: _samples(some, split, seed, advance),
        unit="images",
    )


def source_digits(split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Handwritten samples behind a split: images (N, 8, 8) in 0..1, labels (N,), numbers (N,) in scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.target))
    chosen = order[NUM_TRAIN_DIGITS:] if split is TEST else order[:NUM_TRAIN_DIGITS]
    return (digits.images[chosen] / 16).astype(np.float32), digits.target[chosen].astype(np.int64), chosen


def _samples(pages: Sequence[Page], split: Split, seed: int, advance: Advance) -> Iterator[Stored]:
    glyphs, labels, _ = source_digits(split)
    for start in range(0, len(pages), _IMAGES_AT_ONCE):
        some = pages[start : start + _IMAGES_AT_ONCE]
        images, chosen = render(glyphs, [stream_key(seed, split.number, page.number) for page in some])
        for page, image, digit in zip(some, images, chosen, strict=True):
            members = {"png": _png(image)}
            if split.has_labels:
                members["cls"] = str(labels[digit]).encode()
            yield Stored(page.key, members)
            advance(1)


def render(glyphs: NDArray[np.float32], keys: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw one image per key.

    Args:
        glyphs: (N, 8, 8) handwritten samples, drawn from uniformly.
        keys: all that is random about an image follows from its key.
    Returns:
        images (len(keys), 28, 28) and the number of the glyph on each.
    """
    import torch
    from torch.nn import functional

    draws = [_draw(np.random.default_rng(key), len(glyphs)) for key in keys]
    chosen = np.array([draw["glyph"] for draw in draws])
    centre, angle, side = (
        torch.from_numpy(np.stack([draw[name] for draw in draws])).float() for name in ("centre", "angle", "side")
    )
    stamps = torch.from_numpy(glyphs[chosen])[:, None]
    pixel = torch.arange(SIDE) + 0.5
    page = torch.zeros(len(keys), 1, SIDE, SIDE)
    for cell in range(_CELLS**2):
        x = pixel[None, None, :] - centre[:, cell, 0, None, None]
        y = pixel[None, :, None] - centre[:, cell, 1, None, None]
        cos, sin = (function(angle[:, cell])[:, None, None] for function in (torch.cos, torch.sin))
        place = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1) * (2 / side[:, cell, None, None, None])
        page = torch.maximum(page, functional.grid_sample(stamps, place, align_corners=False))
    contrast = np.array([draw["contrast"] for draw in draws])[:, None, None]
    noise = np.stack([draw["noise"] for draw in draws])
    images = np.clip(page[:, 0].numpy() * contrast + noise, 0, 1)
    return np.round(images * 255).astype(np.uint8), chosen


def _draw(generator: np.random.Generator, num_glyphs: int) -> dict[str, Any]:
    """All that is random about one image; positions in pixels, cells in rows."""
    glyph = int(generator.integers(num_glyphs))
    phase = generator.random(2)
    row, column = np.divmod(np.arange(_CELLS**2), _CELLS)
    grid = (np.stack([column, row], axis=1) + 0.5 - phase) * _PITCH
    return {
        "glyph": glyph,
        "centre": grid + generator.uniform(-_JITTER, _JITTER, grid.shape),
        "side": generator.uniform(*_SCALE, _CELLS**2) * _PITCH,
        "angle": np.deg2rad(generator.uniform(*_ANGLE, _CELLS**2)),
        "contrast": generator.uniform(*_CONTRAST),
        "noise": generator.normal(0.0, _NOISE_STD, (SIDE, SIDE)),
    }


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
