"""How fast samples are decoded, read, verified and indexed: rates per core, as JSON.

``python -m benchmarks.data_throughput [--images 400] [--seconds 3]``. Rates are per second of CPU time of one process,
so other load on the machine hardly changes them; files are in the page cache. The images are 500 x 375 JPEGs (the
usual size in ImageNet) cut from scikit-learn's photographs.
"""

import argparse
import io
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from sklearn.datasets import load_sample_images

from data_pipelines.config import ImageSourceConfig
from data_pipelines.order import sample_at
from data_pipelines.reader import Reader
from data_pipelines.shards.index import build_index
from data_pipelines.shards.verify import verify_shard
from data_pipelines.shards.writer import Stored, write_shard
from data_pipelines.transforms.image import check_image, load_image

BASELINES = {
    "decode_images": (351.0, "Pillow decode, crop and resize: ecosystem.md section 1.7"),
    "index_mib": (1189.0, "offset + CRC-32 prototype: ecosystem.md section 1.5"),
}
WIDTH, HEIGHT = 500, 375
QUALITY = 97  # gives files of about the mean size in ImageNet, 101 kB


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400, help="images in the shard; default: 400")
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU seconds per measurement; default: 3")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder, "shard.tar")
        samples = make_samples(arguments.images)
        write_shard(shard, samples)
        print(json.dumps(measure(shard, [one.members["jpg"] for one in samples], arguments.seconds), indent=2))


def make_samples(number: int) -> list[Stored]:
    """JPEGs with a label each."""
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    generator = np.random.default_rng(0)
    samples = []
    for sample in range(number):
        picture = pictures[sample % 2]
        left = int(generator.integers(picture.width - WIDTH + 1))
        top = int(generator.integers(picture.height - HEIGHT + 1))
        buffer = io.BytesIO()
        picture.crop((left, top, left + WIDTH, top + HEIGHT)).save(buffer, "JPEG", quality=QUALITY)
        samples.append(Stored(f"{sample:06d}", {"jpg": buffer.getvalue(), "cls": str(sample % 2).encode()}))
    return samples


def measure(shard: Path, images: list[bytes], seconds: float) -> dict[str, object]:
    """All rates of one shard."""
    config = ImageSourceConfig()
    reader = Reader(str(shard))
    draws = np.random.default_rng(1)
    mib = shard.stat().st_size / 2**20
    places = sample_at(0, np.arange(len(reader)), len(reader))[1].tolist()

    def rate_of_images(function: Callable[[bytes], object]) -> float:
        return len(images) * repeats_per_second(lambda: [function(data) for data in images], seconds)

    rates = {
        "decode_images": rate_of_images(lambda data: load_image(data, config, draws)),
        "decode_images_pillow_alone": rate_of_images(lambda data: Image.open(io.BytesIO(data)).convert("RGB")),
        "check_images": rate_of_images(lambda data: check_image(data, config.max_pixels)),
        "read_samples": len(reader) * repeats_per_second(lambda: [reader.read(place) for place in places], seconds),
        "read_samples_webdataset": len(reader) * repeats_per_second(lambda: read_sequentially(shard), seconds),
        "verify_mib": mib * repeats_per_second(lambda: verify_shard(shard), seconds),
        "index_mib": mib * repeats_per_second(lambda: build_index(shard), seconds),
        "order_samples": 1e6 * repeats_per_second(lambda: sample_at(0, np.arange(1_000_000), 1_281_167), seconds),
    }
    return {
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "shard": {"samples": len(reader), "mib": round(mib, 1), "bytes_per_image": round(mib * 2**20 / len(reader))},
        "per_second_and_core": {name: float(f"{rate:.4g}") for name, rate in rates.items()},
        "ratios": ratios(rates),
    }


def ratios(rates: dict[str, float]) -> dict[str, dict[str, object]]:
    """Our rates over the baselines."""
    measured_here = {
        "decode_images": (rates["decode_images_pillow_alone"], "Pillow decode alone, no crop or resize: this run"),
        "read_samples": (rates["read_samples_webdataset"], "webdataset, sequential, no CRC: this run"),
    }
    return {
        f"{name} / {source}": {"baseline": float(f"{baseline:.4g}"), "ratio": round(rates[name] / baseline, 3)}
        for known in (BASELINES, measured_here)
        for name, (baseline, source) in known.items()
    }


def repeats_per_second(function: Callable[[], object], seconds: float) -> float:
    """Calls per second of this process's CPU time, after one call to warm up."""
    function()
    started, number = time.process_time(), 0
    while (used := time.process_time() - started) < seconds:
        function()
        number += 1
    return number / used


def read_sequentially(shard: Path) -> int:
    """All samples of a shard through stock webdataset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(1 for _ in webdataset.WebDataset(str(shard), shardshuffle=False))


if __name__ == "__main__":
    main()
