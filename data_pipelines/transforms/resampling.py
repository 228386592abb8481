"""The one module that knows torchaudio: sample rates, speed, noise. It is imported when it is first needed.

The wheels of torchaudio on PyPI hold a native library that is linked against CUDA; beside a CPU-only torch, or one of
another CUDA version, its loading fails, and with it ``import torchaudio`` (2.8 to 2.11). All that is used here is
written in Python on torch, so then torchaudio is imported with a stand-in for the module that loads the library.
"""

import functools
import importlib
import math
import sys
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipelines.errors import DataError

_NATIVE = "torchaudio._extension"
_MAX_KERNEL_VALUES = 1 << 24
"""Of the filters of one pair of sample rates: 128 MiB. Rates without a common factor would need gigabytes."""
_ZERO_CROSSINGS, _ROLLOFF = 6, 0.99  # of torchaudio's windowed sinc


@functools.cache
def import_torchaudio() -> ModuleType:
    """``import torchaudio`` that works without its native library.

    transformers imports torchaudio wherever it is installed, and many of its classes then cannot be imported if that
    fails (``AutoImageProcessor``, ``BertModel``): call this before importing transformers.

    Raises:
        DataError: if torchaudio is missing or cannot be imported even so.
    """
    try:
        import torchaudio
    except (OSError, RuntimeError, ImportError):
        torchaudio = _import_without_native()
    return torchaudio


def _import_without_native() -> ModuleType:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]  # of the attempt that failed half way
    stand_in = ModuleType(_NATIVE, "Stand-in of data2vec-scale: the native library does not fit the installed torch.")
    stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    stand_in.fail_if_no_align = _without_alignment  # type: ignore[attr-defined]
    sys.modules[_NATIVE] = stand_in
    try:
        return importlib.import_module("torchaudio")
    except (OSError, RuntimeError, ImportError) as error:
        del sys.modules[_NATIVE]
        raise DataError(
            f"torchaudio cannot be imported ({error}); 'pip install -r requirements.txt' mends it"
        ) from error


def _without_alignment(function: object) -> object:
    """Decorates functions of torchaudio that need the native library; they fail when they are called."""
    return function


def resample(waveform: NDArray[np.float32], rate_in: int, rate_out: int) -> NDArray[np.float32]:
    """A waveform (L,) at another sample rate in hertz, by torchaudio's windowed sinc; see ``resampled_length``.

    Raises:
        DataError: if the two rates have too small a common factor.
    """
    if rate_in == rate_out:
        return waveform
    common = math.gcd(rate_in, rate_out)
    reduced_in, reduced_out = rate_in // common, rate_out // common
    width = math.ceil(_ZERO_CROSSINGS * reduced_in / (min(reduced_in, reduced_out) * _ROLLOFF))
    if reduced_out * (reduced_in + 2 * width) > _MAX_KERNEL_VALUES:
        raise DataError(f"{rate_in:,} Hz cannot be resampled to {rate_out:,} Hz: their common factor is too small")
    import torch

    resampled = import_torchaudio().functional.resample(torch.from_numpy(waveform), rate_in, rate_out)
    return resampled.numpy()


def resampled_length(num_samples: ArrayLike, rate_in: ArrayLike, rate_out: int) -> NDArray[np.int64]:
    """Length of a waveform of ``num_samples`` after ``resample``: ceil(num_samples * rate_out / rate_in).

    torchaudio rounds the quotient to float32 before it rounds up, and so does this: from 20 s at 44.1 kHz on, the
    exact formula is one sample longer now and then.
    """
    rate_in = np.asarray(rate_in, np.int64)
    common = np.gcd(rate_in, rate_out)
    quotient = np.asarray(num_samples, np.int64) * (rate_out // common) / (rate_in // common)
    return np.ceil(quotient.astype(np.float32)).astype(np.int64)


def change_speed(waveform: NDArray[np.float32], rate: int, factor: float) -> NDArray[np.float32]:
    """Play a waveform (L,) ``factor`` times as fast, pitch included (as ``torchaudio.functional.speed``)."""
    return resample(waveform, round(factor * rate), rate)


def length_at_speed(num_samples: ArrayLike, rate: int, factor: float) -> NDArray[np.int64]:
    """Length of a waveform of ``num_samples`` after ``change_speed``."""
    return resampled_length(num_samples, round(factor * rate), rate)


def add_noise(waveform: NDArray[np.float32], noise: NDArray[np.float32], snr_db: float) -> NDArray[np.float32]:
    """A waveform (L,) with noise (L,) scaled to a signal-to-noise ratio in decibels."""
    import torch

    noisy = import_torchaudio().functional.add_noise(
        torch.from_numpy(waveform), torch.from_numpy(noise), torch.tensor(snr_db)
    )
    return noisy.numpy()
