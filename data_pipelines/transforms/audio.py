"""Bytes of a recording -> normalised mono waveform at one sample rate, as the reference does for LibriSpeech.

soundfile (libsndfile) decodes WAV, FLAC, OGG (Vorbis, Opus) and MP3. It takes a file that was cut short for a shorter
one, so lengths are checked here: RIFF chunks, the end mark of Ogg, the frames of MP3, and decoded against announced.
"""

import io
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipelines.config import AudioSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.transforms.mp3 import is_mp3, with_frame_count
from data_pipelines.transforms.resampling import add_noise, change_speed, resample

MEMBER_EXTENSIONS = ("flac", "wav", "ogg", "oga", "opus", "mp3")
"""Members of a sample that are recordings; the first of these that it has is the one that counts."""
_EXTENSIONS = {"WAV": "wav", "WAVEX": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}
"""By what libsndfile calls the formats that are read."""
_SAMPLE_RATES = range(1_000, 192_001)
_MAX_CHANNELS = 8
_MIN_SECONDS = 0.025
_BLOCK_FRAMES = 1 << 20  # decoded at a time: bounds what channels cost in memory
_LENGTH_NOT_TOLD = (1 << 63) - 1  # of a FLAC file that was written to a pipe
_STREAMED_WAV = 0x7FFF0000  # programs that write WAV to a pipe announce at least so many bytes
_NORM_EPS = 1e-5  # torch's layer_norm, fairseq's choice


class Header(NamedTuple):
    """Length of a recording, before any resampling."""

    num_frames: int
    """Samples of one channel."""
    sample_rate: int
    """Hertz."""


def audio_member(extensions: Collection[str]) -> str:
    """The extension of the member of a sample that is its recording.

    Raises:
        DataError: if there is none.
    """
    for extension in MEMBER_EXTENSIONS:
        if extension in extensions:
            return extension
    raise DataError(f"has no audio member (.{', .'.join(MEMBER_EXTENSIONS)}), only .{', .'.join(extensions)}")


def audio_bytes(members: dict[str, bytes]) -> bytes:
    """The member of a sample that is its recording; raises as ``audio_member``."""
    return members[audio_member(members)]


def audio_header(data: bytes) -> Header:
    """Read how long a recording is: exactly as many frames as decoding it will give.

    Raises:
        DataError: if it is not a whole WAV, FLAC, OGG or MP3 file.
    """
    with _opened(data) as sound:
        return Header(sound.frames, sound.samplerate)


def check_audio(data: bytes, max_seconds: float) -> str:
    """Decode a recording once to see that it is whole.

    Returns:
        The extension of its format.
    Raises:
        DataError: as ``decode_audio``.
    """
    with _opened(data) as sound:
        _decode(sound, max_seconds)
        return _EXTENSIONS[sound.format]


def decode_audio(data: bytes, max_seconds: float) -> tuple[NDArray[np.float32], int]:
    """Decode a recording; channels are averaged.

    Args:
        data: a WAV, FLAC, OGG or MP3 file.
        max_seconds: a longer recording is refused before it is decoded.
    Returns:
        Waveform (L,) with full scale at -1 and 1, and its sample rate in hertz.
    Raises:
        DataError: if it cannot be decoded, is cut short, too long, shorter than 25 ms, or holds samples that are no
            numbers.
    """
    with _opened(data) as sound:
        return _decode(sound, max_seconds), sound.samplerate


def encode_audio(waveform: NDArray[np.float32], sample_rate: int, extension: str) -> bytes:
    """A waveform (L,) as a file of one of the formats that are read, by its extension; hertz."""
    names = {extension: name for name, extension in _EXTENSIONS.items() if name != "WAVEX"}
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format=names[extension])
    return buffer.getvalue()


def load_audio(
    data: bytes, config: AudioSourceConfig, generator: np.random.Generator | None = None
) -> NDArray[np.float32]:
    """Decode, resample, change the speed, add noise, normalise one whole recording.

    Args:
        data: a WAV, FLAC, OGG or MP3 file.
        config: the transform.
        generator: all random draws come from it; None changes neither speed nor noise (evaluation).
    Returns:
        (L,) float32 at ``config.sample_rate``; L is ``resampled_length`` of its frames, and then ``length_at_speed``.
    Raises:
        DataError: as ``decode_audio``, or if its sample rate cannot be converted.
    """
    waveform, rate = decode_audio(data, config.max_decoded_seconds)
    with _one_thread():
        waveform = resample(waveform, rate, config.sample_rate)
        if generator is not None:
            waveform = _augmented(waveform, config, generator)
        return _normalised(waveform) if config.normalize else waveform


@contextmanager
def _one_thread() -> Iterator[None]:
    """Convolutions round otherwise with other numbers of threads (measured: 5e-7), and the training process has more
    of them than its workers, which must give the same.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _augmented(
    waveform: NDArray[np.float32], config: AudioSourceConfig, generator: np.random.Generator
) -> NDArray[np.float32]:
    if config.speed_factors:
        factor = config.speed_factors[generator.integers(len(config.speed_factors))]
        waveform = change_speed(waveform, config.sample_rate, factor)
    if generator.random() < config.noise_prob:
        snr_db = generator.uniform(*config.noise_snr_db)
        waveform = add_noise(waveform, generator.standard_normal(len(waveform), np.float32), snr_db)
    return waveform


def _normalised(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0 and variance 1, by the same function as fairseq (``FileAudioDataset.postprocess``)."""
    import torch
    from torch.nn import functional

    return functional.layer_norm(torch.from_numpy(waveform), waveform.shape, eps=_NORM_EPS).numpy()


def _decode(sound: soundfile.SoundFile, max_seconds: float) -> NDArray[np.float32]:
    rate, num_frames, channels = sound.samplerate, sound.frames, sound.channels
    if num_frames > max_seconds * rate:
        raise DataError(
            f"{num_frames / rate:,.1f} s are more than the cap of {max_seconds:,.1f} s (data.audio.max_decoded_seconds)"
        )
    shares = np.full(channels, 1 / channels, np.float32)
    parts = []
    while len(block := sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
        parts.append(block @ shares if channels > 1 else block[:, 0])
    num_decoded = sum(map(len, parts))
    if num_decoded != num_frames:
        raise DataError(f"cut short or damaged: {num_decoded:,} samples could be decoded, it announces {num_frames:,}")
    if num_decoded < _MIN_SECONDS * rate:
        raise DataError(f"holds {num_decoded:,} samples, less than {1000 * _MIN_SECONDS:.0f} ms")
    waveform = np.concatenate(parts)
    with np.errstate(over="ignore", invalid="ignore"):
        energy = np.dot(waveform, waveform)
    if not np.isfinite(energy):
        raise DataError("holds samples that are infinite, no numbers (NaN) or absurdly large")
    return waveform


@contextmanager
def _opened(data: bytes) -> Iterator[soundfile.SoundFile]:
    """A recording whose header is read; whatever libsndfile meets in the block becomes one DataError.

    It is chosen here by what the file begins with: other decoders of libsndfile stay closed to untrusted bytes.
    """
    data = _without_tag(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        _check_riff(data)
    elif data[:4] == b"OggS":
        _check_ogg(data)
    elif is_mp3(data):
        data = with_frame_count(data)
    elif data[:4] != b"fLaC":
        raise DataError("not a WAV, FLAC, OGG or MP3 recording")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            if sound.samplerate not in _SAMPLE_RATES or sound.channels > _MAX_CHANNELS:
                raise DataError(f"{sound.channels} channels of {sound.samplerate:,} Hz are no usual recording")
            if sound.frames == _LENGTH_NOT_TOLD:
                raise DataError("does not tell its length, as FLAC that was written to a pipe; encode it again")
            yield sound
    except DataError:
        raise
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise DataError(f"cannot be decoded: {reason or 'damaged or cut short'}") from error
    except Exception as error:
        raise DataError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error


def _without_tag(data: bytes) -> bytes:
    """A file without the ID3v2 tag before it."""
    if not data:
        raise DataError("is empty")
    if data[:3] != b"ID3" or len(data) < 10:
        return data
    size = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(data[6:10])))
    return data[10 + size + (10 if data[5] & 0x10 else 0) :]


def _check_riff(data: bytes) -> None:
    """libsndfile reads as much of the chunk "data" as there is."""
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"data" and position + size > len(data) and size < _STREAMED_WAV:
            raise DataError(f"cut short: {len(data) - position:,} of {size:,} bytes of samples are there")
        position += size + size % 2


def _check_ogg(data: bytes) -> None:
    """libsndfile takes the last whole page for the end, even if it is not marked so."""
    last = data.rfind(b"OggS")
    table = data[last + 27 : last + 27 + data[last + 26]] if last + 27 <= len(data) else b""
    if not table or last + 27 + len(table) + sum(table) > len(data) or not data[last + 5] & 4:
        raise DataError("cut short: the last page of the Ogg stream is missing")
