"""Speech to test with: spoken by espeak-ng where the system has it, else vowels made by a source-filter synthesis."""

import functools
import io
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from scipy import signal
from torch import Tensor

from data_pipelines.shards.writer import Stored, write_shard

ESPEAK = shutil.which("espeak-ng")
ORIGIN = "spoken by espeak-ng" if ESPEAK else "synthesised vowels (espeak-ng is not installed)"
_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and runs away from seven barking hounds.",
    "A recording is cut into windows, and what is hidden in one of them is predicted from the rest.",
    "She had your dark suit in greasy wash water all year; nobody asked where it came from.",
)
_POOL_RATE = 22_050  # espeak-ng's


@functools.cache
def pool() -> NDArray[np.float32]:
    """About 40 s of speech at 22 050 Hz."""
    warnings.warn(f"speech in these tests: {ORIGIN}", stacklevel=2)  # so that the summary of a run says it
    return _espeak() if ESPEAK else _vowels()


def speech(number: int, seconds: float, rate: int = 16_000) -> NDArray[np.float32]:
    """A stretch of speech of its own for every number: (seconds * rate,) with a peak of about 0.5."""
    num_samples = round(seconds * rate)
    source = pool()
    start = number * 7919 % len(source)
    needed = int(np.ceil(seconds * _POOL_RATE)) + 100
    stretch = np.take(source, range(start, start + needed), mode="wrap")
    common = np.gcd(rate, _POOL_RATE)
    return signal.resample_poly(stretch, rate // common, _POOL_RATE // common)[:num_samples].astype(np.float32)


def encode(waveform: NDArray[np.float32], rate: int = 16_000, format_name: str = "FLAC", subtype: str = "") -> bytes:
    """A file of (L,) or (L, channels)."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=format_name, subtype=subtype or None)
    return buffer.getvalue()


def write_speech_shards(folder: Path, seconds: Sequence[float], *, samples_per_shard: int = 12) -> list[Stored]:
    """Fill a folder with indexed shards of FLAC at 16 kHz, one recording per duration; returns them in order."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [Stored(f"{n:03d}", {"flac": encode(speech(n, duration))}) for n, duration in enumerate(seconds)]
    for shard, start in enumerate(range(0, len(samples), samples_per_shard)):
        write_shard(folder / f"shard-{shard:06d}.tar", samples[start : start + samples_per_shard])
    return samples


class FrameMasks:
    """A ``Masking`` with the frames of data2vec's audio (25 ms every 20 ms) and half of them masked."""

    num_views = 2

    def num_tokens(self, length: int) -> int:
        return (length - 400) // 320 + 1

    def masks(self, keys: Sequence[int], lengths: Sequence[int], padded_length: int | None = None) -> Tensor:
        assert len(keys) == len(lengths)
        num_tokens = self.num_tokens(max(lengths))
        rows = []
        for key in keys:
            generator = torch.Generator().manual_seed(key)
            places = torch.rand(self.num_views, num_tokens, generator=generator).argsort(dim=1)
            rows.append(places < num_tokens // 2)
        return torch.stack(rows)


def _espeak() -> NDArray[np.float32]:
    parts = []
    for number, text in enumerate(_TEXTS * 3):
        voice = ["-v", "en", "-p", str(20 + 8 * number), "-s", str(120 + 10 * number)]
        spoken = subprocess.run([str(ESPEAK), *voice, "--stdout", text], capture_output=True, check=True).stdout
        waveform, rate = soundfile.read(io.BytesIO(spoken), dtype="float32")
        assert rate == _POOL_RATE
        parts.append(waveform)
    joined = np.concatenate(parts)
    return 0.5 * joined / np.abs(joined).max()


def _vowels() -> NDArray[np.float32]:
    """Pulses of a gliding pitch through three resonances per vowel, some breath, and pauses."""
    generator = np.random.default_rng(0)
    formants = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410)]
    parts = []
    for number in range(160):
        num_samples = int(generator.uniform(0.1, 0.4) * _POOL_RATE)
        pitch = np.linspace(*generator.uniform(90, 220, 2), num_samples)
        voiced = np.diff(np.floor(np.cumsum(pitch) / _POOL_RATE), prepend=0.0)
        sound = voiced + 0.02 * generator.standard_normal(num_samples)
        for centre in formants[number % len(formants)]:
            radius = np.exp(-np.pi * 80 / _POOL_RATE)
            angle = 2 * np.pi * centre / _POOL_RATE
            sound = signal.lfilter([1.0], [1.0, -2 * radius * np.cos(angle), radius**2], sound)
        parts += [sound / np.abs(sound).max() * np.hanning(num_samples), np.zeros(int(0.03 * _POOL_RATE))]
    return (0.5 * np.concatenate(parts)).astype(np.float32)
