import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from data_pipelines.order import stream_key
from data_pipelines.prepare.digits import BANK, PRETRAIN, TEST, Split, _draw, plan_digits, render, source_digits
from data_pipelines.prepare.folder import write_folder
from data_pipelines.reader import Reader


def write(split: Split, out: Path, num_images: int, *, seed: int = 0, num_workers: int = 1) -> Reader:
    write_folder(plan_digits(split, num_images, seed=seed), out, num_workers=num_workers, report=lambda done: None)
    return Reader(str(out))


def test_no_handwriting_of_the_test_split_is_seen_in_training() -> None:
    _, _, train = source_digits(PRETRAIN)
    _, _, bank = source_digits(BANK)
    _, _, test = source_digits(TEST)
    assert np.array_equal(train, bank)
    assert (len(train), len(test)) == (1300, 497)
    assert sorted([*train, *test]) == list(range(1797))
    digits = load_digits().images
    hashes = [{hashlib.sha256(digits[number].tobytes()).digest() for number in part} for part in (train, test)]
    assert not hashes[0] & hashes[1]  # nor is one digit in the set twice


def test_pretraining_images_carry_no_label(tmp_path: Path) -> None:
    reader = write(PRETRAIN, tmp_path / "pretrain", 30)
    assert all(set(reader.read(number).members) == {"png"} for number in range(30))
    assert all(reader.read(number).label is None for number in range(30))
    assert not (tmp_path / "pretrain" / "classes.json").exists()


@pytest.mark.parametrize("split", [BANK, TEST])
def test_labels_are_those_of_the_stamped_digit(split: Split, tmp_path: Path) -> None:
    reader = write(split, tmp_path, 300)
    glyphs, labels, _ = source_digits(split)
    images, chosen = render(glyphs, [stream_key(0, split.number, number) for number in range(300)])
    for number in range(300):
        sample = reader.read(number)
        image = Image.open(io.BytesIO(sample.members["png"]))
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), images[number])
        assert sample.label == labels[chosen[number]]


def test_an_image_depends_on_seed_split_and_number_alone(tmp_path: Path) -> None:
    few, many = write(BANK, tmp_path / "few", 10), write(BANK, tmp_path / "many", 2100, num_workers=2)
    assert [few.read(number) for number in range(10)] == [many.read(number) for number in range(10)]
    others = [write(BANK, tmp_path / "seed", 10, seed=1), write(TEST, tmp_path / "test", 10)]
    for other in others:
        assert all(other.read(number).members["png"] != few.read(number).members["png"] for number in range(10))


def test_digits_are_drawn_uniformly_over_samples() -> None:
    drawn = [_draw(np.random.default_rng(stream_key(0, 0, number)), 1300)["glyph"] for number in range(13_000)]
    counts = np.bincount(drawn, minlength=1300)
    assert ((counts - 10) ** 2 / 10).sum() < 1300 + 4 * np.sqrt(2 * 1300)  # chi-squared


def test_statistics_are_those_of_the_recipe() -> None:
    """Noise, contrast and coverage of the page, from the description in demo.md section 2."""
    flat = np.ones((1, 8, 8), dtype=np.float32)
    empty = np.zeros((1, 8, 8), dtype=np.float32)
    keys = range(2000)
    noise = render(empty, keys)[0] / 255
    half_normal_mean = 0.1 / np.sqrt(2 * np.pi)  # negative noise is clamped to 0
    assert abs(noise.mean() - half_normal_mean) < 0.001
    assert abs((noise > 0.5 / 255).mean() - 0.492) < 0.005
    stamped = render(flat, keys)[0] / 255
    brightness = np.array([np.median(page[page > 0.5]) for page in stamped])  # of what is covered, so the contrast
    assert abs(np.quantile(brightness, 0.02) - 0.706) < 0.02
    assert abs(np.quantile(brightness, 0.5) - 0.85) < 0.03
    assert abs(np.quantile(brightness, 0.98) - 0.994) < 0.03
    covered = (stamped > 0.5).mean(axis=0)
    assert covered.min() > 0.7  # every pixel alike: the phase is uniform
    assert np.ptp(covered) < 0.07


def test_stamps_repeat_at_the_pitch() -> None:
    """The mean autocorrelation of pages has its first peak at 11 pixels."""
    images = render(source_digits(PRETRAIN)[0], range(1500))[0].astype(np.float64)
    images -= images.mean(axis=(1, 2), keepdims=True)
    correlation = [(images[:, :, : 28 - lag] * images[:, :, lag:]).mean() for lag in range(17)]
    assert 5 + int(np.argmax(correlation[5:])) in (10, 11, 12)
    assert correlation[11] > 0 > correlation[6]
