"""Bytes of an image -> normalised array, as the reference does for ImageNet (RandomResizedCrop, flip, normalise)."""

import io
import math
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data_pipelines.config import ImageSourceConfig
from data_pipelines.errors import DataError

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats that are read; all other decoders of Pillow stay closed to untrusted bytes."""
_MEMBER_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_CROP_TRIES = 10


class Box(NamedTuple):
    """A rectangle in pixels of the full image."""

    left: int
    top: int
    width: int
    height: int


def image_member(extensions: Collection[str]) -> str:
    """The extension of the member of a sample that is its image.

    Raises:
        DataError: if there is none.
    """
    for extension in _MEMBER_EXTENSIONS:
        if extension in extensions:
            return extension
    raise DataError(f"has no image member (.{', .'.join(_MEMBER_EXTENSIONS)}), only .{', .'.join(extensions)}")


def image_bytes(members: dict[str, bytes]) -> bytes:
    """The member of a sample that is its image; raises as ``image_member``."""
    return members[image_member(members)]


def load_image(
    data: bytes, config: ImageSourceConfig, generator: np.random.Generator | None = None
) -> NDArray[np.float32]:
    """Decode, crop, resize, flip and normalise one image.

    Args:
        data: a JPEG, PNG or WebP file.
        config: the transform.
        generator: all random draws come from it; None takes the centre and does not flip (evaluation).
    Returns:
        (channels, size, size) float32.
    Raises:
        DataError: if the image cannot be decoded or has more than ``config.max_pixels``.
    """
    image = open_image(data, config.max_pixels)
    if generator is not None and config.crop:
        box = random_box(*image.size, config, generator)
    else:
        box = centre_box(*image.size)
    with _decoding():
        image = _resized_crop(image, box, config)
    values = np.asarray(image).reshape(config.size, config.size, config.channels)
    if generator is not None and generator.random() < config.flip_prob:
        values = values[:, ::-1]
    pixels = np.ascontiguousarray(values.transpose(2, 0, 1)).astype(np.float32)
    pixels /= np.float32(255)
    pixels -= np.array(config.mean, np.float32)[:, None, None]
    pixels /= np.array(config.std, np.float32)[:, None, None]
    return pixels


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read an image's header; the pixels are not decoded yet.

    Raises:
        DataError: if it is not a JPEG, PNG or WebP, or its header announces more than ``max_pixels``.
    """
    with _decoding():
        image = Image.open(io.BytesIO(data), formats=list(EXTENSIONS))
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(f"{width} x {height} pixels are more than the cap of {max_pixels:,} (data.image.max_pixels)")
    return image


def check_image(data: bytes, max_pixels: int) -> str:
    """Decode an image once to see that it is whole.

    A JPEG is decoded at an eighth of its size, which still reads every compressed byte.

    Returns:
        The extension of its format.
    Raises:
        DataError: if it cannot be decoded or exceeds ``max_pixels``.
    """
    image = open_image(data, max_pixels)
    with _decoding():
        image.draft("L", (1, 1))
        image.load()
    return EXTENSIONS[str(image.format)]


def random_box(width: int, height: int, config: ImageSourceConfig, generator: np.random.Generator) -> Box:
    """Draw a crop by torchvision's rule: ten tries of area and log-uniform ratio, else the largest central crop."""
    for _ in range(_CROP_TRIES):
        area = width * height * generator.uniform(*config.crop_scale)
        ratio = math.exp(generator.uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(generator.integers(height - box_height + 1))
            left = int(generator.integers(width - box_width + 1))
            return Box(left, top, box_width, box_height)
    ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    box_width = max(1, min(width, round(height * ratio)))
    box_height = max(1, min(height, round(width / ratio)))
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def centre_box(width: int, height: int) -> Box:
    """The largest central square."""
    side = min(width, height)
    return Box((width - side) // 2, (height - side) // 2, side, side)


def _resized_crop(image: Image.Image, box: Box, config: ImageSourceConfig) -> Image.Image:
    """Decode no finer than needed, crop, convert, resize with bicubic interpolation.

    A JPEG decoder can shrink by 2, 4 or 8 while decoding ("draft"); it is asked for the smallest image in which the
    crop still has at least the pixels of the result.
    """
    full_width, full_height = image.size
    shrink = 1 << (max(1, min(box.width, box.height) // config.size).bit_length() - 1)  # a power of 2
    image.draft(None, (full_width // shrink, full_height // shrink))
    scale_x, scale_y = image.width / full_width, image.height / full_height
    left, right = box.left * scale_x, (box.left + box.width) * scale_x
    top, bottom = box.top * scale_y, (box.top + box.height) * scale_y
    left_edge, top_edge = math.floor(left), math.floor(top)
    part = image.crop((left_edge, top_edge, min(image.width, math.ceil(right)), min(image.height, math.ceil(bottom))))
    part = part.convert("RGB" if config.channels == 3 else "L")
    inner = (
        left - left_edge,
        top - top_edge,
        min(part.width, right - left_edge),
        min(part.height, bottom - top_edge),
    )
    return part.resize((config.size, config.size), Image.Resampling.BICUBIC, box=inner)


@contextmanager
def _decoding() -> Iterator[None]:
    """Pillow meets broken files with many kinds of exceptions and warnings; all become one DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError as error:  # its message holds a memory address
        raise DataError("not a JPEG, PNG or WebP image") from error
    except Exception as error:
        raise DataError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error
