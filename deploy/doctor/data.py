"""Checks of what reads, prepares and tracks: something small goes through each library and has to come out right."""

import io
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipelines.config import ImageSourceConfig
from deploy.doctor.findings import Finding

_COLOUR = (200, 100, 50)
_RATE, _TONE, _SECONDS = 16_000, 440.0, 0.5


def images() -> Finding:
    """A plain picture as JPEG, PNG and WebP."""
    from PIL import Image

    from data_pipelines.transforms.image import EXTENSIONS, load_image

    config = ImageSourceConfig(size=32, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    wrong = []
    for name in EXTENSIONS:
        buffer = io.BytesIO()
        Image.new("RGB", (48, 40), _COLOUR).save(buffer, name)
        pixels = load_image(buffer.getvalue(), config)
        if not np.allclose(pixels, np.array(_COLOUR)[:, None, None], atol=4):
            wrong.append(name)
    return _formats("pillow", "pillow", list(EXTENSIONS), wrong)


def sound() -> Finding:
    """A tone as WAV, FLAC, OGG and MP3."""
    from data_pipelines.transforms.audio import decode_audio, encode_audio

    formats, wrong = ["wav", "flac", "ogg", "mp3"], []
    for extension in formats:
        decoded, rate = decode_audio(encode_audio(0.5 * _tone(_RATE), _RATE, extension), max_seconds=1)
        loudness = float(np.sqrt(np.mean(decoded**2)))
        if rate != _RATE or abs(loudness - 0.5 / np.sqrt(2)) > 0.05:
            wrong.append(extension)
    return _formats("soundfile", "soundfile", formats, wrong)


def resampling() -> Finding:
    """A tone at 8 kHz becomes the same tone at 16 kHz."""
    from data_pipelines.transforms.resampling import resample

    middle = slice(1000, -1000)  # at its ends a filter sees silence
    error = float(np.abs(resample(_tone(_RATE // 2), _RATE // 2, _RATE) - _tone(_RATE))[middle].max())
    if error > 0.01:
        return Finding("error", f"torchaudio resamples a tone wrongly ({error:.2g} off)")
    native = sys.modules["torchaudio._extension"]._IS_TORCHAUDIO_EXT_AVAILABLE
    how = "" if native else " without its native library, which fits another torch and is not needed"
    return Finding("ok", f"torchaudio {version('torchaudio')}{how}: a tone resamples right")


def tokenizer() -> Finding:
    """A small vocabulary is trained, and gives a text back."""
    from data_pipelines.tokenizers.sentencepiece_model import train_sentencepiece

    text = "What goes in has to come out: naïve, 東京, 2 + 2."
    trained = train_sentencepiece([Path(__file__).read_text(encoding="utf-8")], vocab_size=400)
    if trained.decode(trained.encode(text)) != text:
        return Finding("error", f"sentencepiece gives back {trained.decode(trained.encode(text))!r}")
    return Finding("ok", f"sentencepiece {version('sentencepiece')}: a trained vocabulary gives its text back")


def shards() -> Finding:
    """A shard is written through webdataset and read through its index."""
    from data_pipelines.reader import Reader
    from data_pipelines.shards.writer import Stored, write_shard

    samples = [Stored(f"{number:03d}", {"bin": os.urandom(1000 + number)}) for number in range(8)]
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder, "shard-000000.tar"), samples)
        reader = Reader(folder)
        same = all(reader.read(number).members == sample.members for number, sample in enumerate(samples))
        reader.close()
    if not same:
        return Finding("error", "a shard does not give back what was written")
    return Finding("ok", f"webdataset {version('webdataset')}: a shard gives back what was written, CRC-32 and all")


def wandb() -> Finding:
    """A run without network; and what a real one would do. Asks nobody but the environment and the user's netrc."""
    from pretrain.observe.sinks import Wandb, wandb_mode

    mode = wandb_mode()
    os.environ["WANDB_MODE"] = "offline"
    with tempfile.TemporaryDirectory() as folder:
        tracker = Wandb(Path(folder), "d2v-doctor", {})
        tracker.write("train", {"step": 1, "loss": 0.5})
        tracker.close()
        if not list(Path(folder).rglob("run-*.wandb")):
            return Finding("warning", "W&B writes no file offline")
    what = {"online": "logged in, --logging.wandb true sends", "offline": "--logging.wandb true keeps runs on disk"}
    return Finding("ok", f"{version('wandb')}: works offline; mode {mode}: {what.get(mode, 'from WANDB_MODE')}")


def _formats(title: str, package: str, formats: list[str], wrong: list[str]) -> Finding:
    if wrong:
        return Finding("error", f"{title} gives wrong values for {', '.join(wrong)}")
    return Finding("ok", f"{title} {version(package)}: {', '.join(formats)}".lower())


def _tone(rate: int) -> NDArray[np.float32]:
    return np.sin(2 * np.pi * _TONE * np.arange(int(_SECONDS * rate)) / rate).astype(np.float32)
