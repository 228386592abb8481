import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from scipy import stats

from data_pipelines.config import ImageSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.transforms.image import (
    Box,
    centre_box,
    check_image,
    image_bytes,
    load_image,
    open_image,
    random_box,
)
from tests.unit.data_pipelines.photographs import encoded, photographs

PLAIN = ImageSourceConfig(size=32, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3, flip_prob=0.0)
"""Values come out as 0..255."""


def as_file(image: Image.Image, format_name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name)
    return buffer.getvalue()


def generator(key: int = 0) -> np.random.Generator:
    return np.random.default_rng(key)


def boxes(width: int, height: int, config: ImageSourceConfig, number: int = 4000) -> np.ndarray:
    draws = generator(3)
    return np.array([random_box(width, height, config, draws) for _ in range(number)])


def test_area_ratio_and_place_are_uniform_where_nothing_is_refused() -> None:
    config = ImageSourceConfig(crop_scale=(0.05, 0.3))
    left, top, width, height = boxes(3000, 3000, config).T
    area = width * height / 3000**2
    assert stats.kstest(area, stats.uniform(0.05, 0.25).cdf).pvalue > 0.01
    assert stats.kstest(np.log(width / height), stats.uniform(math.log(3 / 4), math.log(16 / 9)).cdf).pvalue > 0.01
    assert stats.kstest(left / (3000 - width), "uniform").pvalue > 0.01
    assert stats.kstest(top / (3000 - height), "uniform").pvalue > 0.01


def test_crops_that_do_not_fit_are_drawn_again() -> None:
    """Against the rule written down in vectors, on ImageNet's usual size."""
    _, _, width, height = boxes(500, 375, ImageSourceConfig()).T
    draws = generator(11)
    area = 500 * 375 * draws.uniform(0.2, 1, 40_000)
    ratio = np.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3), 40_000))
    expected_width, expected_height = np.sqrt(area * ratio).round(), np.sqrt(area / ratio).round()
    fits = (expected_width <= 500) & (expected_height <= 375)
    assert 0.05 < 1 - fits.mean() < 0.4
    assert stats.ks_2samp(width, expected_width[fits]).pvalue > 0.01
    assert stats.ks_2samp(height, expected_height[fits]).pvalue > 0.01


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1000, 9), Box(494, 0, 12, 9)),
        ((9, 1000), Box(0, 494, 9, 12)),
        ((1, 1), Box(0, 0, 1, 1)),
        ((4000, 1), Box(1999, 0, 1, 1)),
    ],
)
def test_too_long_images_give_the_largest_central_crop(size: tuple[int, int], expected: Box) -> None:
    assert random_box(*size, ImageSourceConfig(crop_scale=(0.9, 1.0)), generator()) == expected


def test_the_whole_transform_is_crop_bicubic_normalise() -> None:
    """Against the same steps spelled out with Pillow and NumPy (torchvision's definition)."""
    picture = Image.fromarray(photographs()[0][:300, :400])
    config = ImageSourceConfig(size=48, flip_prob=1.0)
    box = random_box(400, 300, config, generator(5))
    crop = picture.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    resized = np.asarray(crop.resize((48, 48), Image.Resampling.BICUBIC), dtype=np.float64)[:, ::-1] / 255
    expected = (resized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    result = load_image(as_file(picture), config, generator(5))
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-6)


def test_all_draws_come_from_the_generator() -> None:
    data = encoded(1, width=200, height=160)
    config = ImageSourceConfig(size=32)
    one, same, other = (load_image(data, config, generator(key)) for key in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_flips_happen_as_often_as_asked() -> None:
    picture = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8), (32, 1)))
    data = as_file(picture)
    config = ImageSourceConfig(size=32, channels=1, mean=(0.0,), std=(1.0,), crop=False, flip_prob=0.25)
    images = [load_image(data, config, generator(key)) for key in range(800)]
    straight, flipped = load_image(data, config), load_image(data, config)[:, :, ::-1]
    num_flipped = sum(np.array_equal(image, flipped) for image in images)
    assert num_flipped + sum(np.array_equal(image, straight) for image in images) == 800
    assert abs(num_flipped - 200) < 4 * math.sqrt(800 * 0.25 * 0.75)


def test_without_a_generator_the_centre_is_taken() -> None:
    assert centre_box(500, 375) == Box(62, 0, 375, 375)
    picture = Image.fromarray(photographs()[1][:96, :128])
    expected = np.asarray(picture.crop((16, 0, 112, 96)).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(load_image(as_file(picture), PLAIN).transpose(1, 2, 0), expected, atol=1e-3)


def test_an_image_that_fits_is_left_alone() -> None:
    pixels = photographs()[0][100:132, 100:132]
    config = ImageSourceConfig(size=32, mean=(0.0,) * 3, std=(1 / 255,) * 3, crop=False, flip_prob=0.0)
    result = load_image(as_file(Image.fromarray(pixels)), config, generator())
    np.testing.assert_allclose(result.transpose(1, 2, 0), pixels, atol=1e-3)


@pytest.mark.parametrize("picture", [0, 1])
@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_draft_decoding_keeps_the_picture(picture: int, divisor: int) -> None:
    """A JPEG whose crop is ``divisor`` times the result, against the same pixels without draft decoding."""
    side = 384
    image = Image.fromarray(photographs()[picture][:side, :side])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    config = ImageSourceConfig(size=side // divisor, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    drafted = load_image(buffer.getvalue(), config)
    exact = load_image(as_file(Image.open(io.BytesIO(buffer.getvalue()))), config)
    difference = abs(drafted - exact)
    assert 0 < difference.mean() < 3.5  # of 255; and draft decoding really happened
    assert np.corrcoef(drafted.ravel(), exact.ravel())[0, 1] > 0.995


def test_no_draft_where_the_crop_would_become_smaller_than_the_result() -> None:
    data = encoded(0, width=300, height=300)
    config = ImageSourceConfig(size=151, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    assert np.array_equal(load_image(data, config), load_image(as_file(Image.open(io.BytesIO(data))), config))


@pytest.mark.parametrize("crop_side", [64, 100, 131, 257, 299])
def test_draft_never_decodes_below_the_result(crop_side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[float, float]] = []
    resize = Image.Image.resize

    def seen(self: Image.Image, size: tuple[int, int], resample: int, box: tuple[float, ...]) -> Image.Image:
        sizes.append((box[2] - box[0], box[3] - box[1]))
        return resize(self, size, resample, box=box)

    monkeypatch.setattr(Image.Image, "resize", seen)
    monkeypatch.setattr(
        "data_pipelines.transforms.image.random_box", lambda *_: Box(17, 23, crop_side, min(crop_side, 250))
    )
    load_image(encoded(0, width=640, height=427), PLAIN, generator())
    ((width, height),) = sizes
    assert 32 <= width < 64 or 32 <= height < 64  # as small as possible
    assert min(width, height) >= 32


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_png_is_read(mode: str, channels: int) -> None:
    picture = Image.fromarray(photographs()[0][:40, :40])
    image = picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode)
    config = ImageSourceConfig(size=32, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    result = load_image(as_file(image), config, generator())
    assert result.shape == (channels, 32, 32)
    assert np.isfinite(result).all()


@pytest.mark.parametrize(("format_name", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_whole_images_pass_the_check(format_name: str, extension: str) -> None:
    assert check_image(encoded(3, format_name=format_name), 10_000) == extension
    cmyk = as_file(Image.fromarray(photographs()[0][:40, :40]).convert("CMYK"), "JPEG")
    assert check_image(cmyk, 10_000) == "jpg"


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_cut_images_fail_the_check(format_name: str, kept: float) -> None:
    data = encoded(4, format_name=format_name)
    with pytest.raises(DataError, match="cannot be decoded|not a JPEG"):
        check_image(data[: int(len(data) * kept)], 10_000)


@pytest.mark.parametrize("data", [b"", b"text", bytes(5000), as_file(Image.new("RGB", (9, 9)), "GIF")])
def test_other_files_are_not_images(data: bytes) -> None:
    with pytest.raises(DataError, match="^not a JPEG, PNG or WebP image$"):
        open_image(data, 10_000)


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes whose header announces any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(8001, 8000), (12_000, 12_000), (60_000, 60_000)])
def test_bombs_are_refused_before_they_are_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", explode)
    with pytest.raises(DataError, match="more than the cap of 64,000,000|exceeds limit"):
        load_image(png_of_size(*size), ImageSourceConfig(), generator())


def test_members_of_other_kinds_are_no_image() -> None:
    assert image_bytes({"cls": b"1", "jpeg": b"x"}) == b"x"
    with pytest.raises(DataError, match=r"has no image member \(.jpg, .jpeg, .png, .webp\), only .cls, .tiff"):
        image_bytes({"cls": b"1", "tiff": b"x"})
