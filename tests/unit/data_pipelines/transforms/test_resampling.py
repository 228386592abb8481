import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.transforms.resampling import (
    add_noise,
    change_speed,
    import_torchaudio,
    length_at_speed,
    resample,
    resampled_length,
)


def in_a_fresh_process(code: str) -> str:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def tone(hertz: float, rate: int, num_samples: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(num_samples) / rate)).astype(np.float32)


def test_transformers_can_be_imported_after_it() -> None:
    """Some of these fail if torchaudio is installed but cannot be imported."""
    in_a_fresh_process(
        "from data_pipelines.transforms.resampling import import_torchaudio\n"
        "assert import_torchaudio().__version__.startswith('2.11.0')\n"
        "from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, BertModel"
    )


def test_a_native_library_that_does_not_load_is_done_without() -> None:
    """Where it does load, the failure is made here: the module that loads it raises."""
    in_a_fresh_process(
        "import sys\n"
        "class Failing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torchaudio._extension': raise RuntimeError('other CUDA')\n"
        "sys.meta_path.insert(0, Failing())\n"
        "from data_pipelines.transforms.resampling import import_torchaudio\n"
        "import torch\n"
        "torchaudio = import_torchaudio()\n"
        "assert torchaudio is sys.modules['torchaudio'] is import_torchaudio()\n"
        "assert torchaudio.functional.resample(torch.ones(441), 44100, 16000).shape == (160,)"
    )


def test_a_missing_torchaudio_is_one_line() -> None:
    said = in_a_fresh_process(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torchaudio': raise ModuleNotFoundError('gone')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from data_pipelines.errors import DataError\n"
        "from data_pipelines.transforms.resampling import import_torchaudio\n"
        "try:\n"
        "    import_torchaudio()\n"
        "except DataError as error:\n"
        "    print(error)"
    )
    assert said == "torchaudio cannot be imported (gone); 'pip install -r requirements.txt' mends it\n"


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    in_a_fresh_process(
        "import sys, data_pipelines.transforms.audio\nassert not {'torch', 'torchaudio'} & sys.modules.keys()"
    )


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000])
def test_lengths_are_those_of_torchaudio(rate: int) -> None:
    generator = np.random.default_rng(rate)
    for longest in (1, 100, rate, 30 * rate):
        num_samples = int(generator.integers(1, longest + 1))
        resampled = resample(np.zeros(num_samples, np.float32), rate, 16_000)
        assert len(resampled) == resampled_length(num_samples, rate, 16_000)
        assert abs(len(resampled) - num_samples * 16_000 / rate) < 1


def test_lengths_follow_its_rounding_where_that_is_not_exact() -> None:
    """It rounds a quotient such as 320 000.0023 to float32, which is 320 000, before it rounds up."""
    num_samples = next(n for n in range(882_001, 900_000) if 0 < n * 160 % 441 < 4)
    exact = -(-num_samples * 160 // 441)
    resampled = resample(np.zeros(num_samples, np.float32), 44_100, 16_000)
    assert len(resampled) == resampled_length(num_samples, 44_100, 16_000) == exact - 1


def test_lengths_of_many() -> None:
    lengths = resampled_length(np.array([441, 442, 480, 7]), np.array([44_100, 44_100, 48_000, 16_000]), 16_000)
    assert lengths.tolist() == [160, 161, 160, 7]
    assert lengths.dtype == np.int64


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_tone_stays_what_it_is(rate: int) -> None:
    resampled = resample(tone(440, rate, 2 * rate), rate, 16_000)
    np.testing.assert_allclose(resampled[400:-400], tone(440, 16_000, 32_000)[400:-400], atol=2e-3)


def test_what_the_new_rate_cannot_hold_is_filtered_out() -> None:
    assert np.abs(resample(tone(15_000, 44_100, 44_100), 44_100, 16_000)[200:-200]).max() < 1e-3


def test_equal_rates_change_nothing() -> None:
    waveform = tone(440, 16_000, 100)
    assert resample(waveform, 16_000, 16_000) is waveform


def test_rates_that_would_need_gigabytes_are_refused() -> None:
    with pytest.raises(DataError, match=r"^44,101 Hz cannot be resampled to 16,000 Hz: their common factor is too"):
        resample(np.zeros(1000, np.float32), 44_101, 16_000)


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.013])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    waveform = tone(400, 16_000, 16_000)
    changed = change_speed(waveform, 16_000, factor)
    assert len(changed) == length_at_speed(16_000, 16_000, factor) == np.ceil(16_000 / round(factor, 3))
    np.testing.assert_allclose(changed[500:-500], tone(400 * factor, 16_000, len(changed))[500:-500], atol=2e-3)


def test_speed_is_that_of_torchaudio() -> None:
    import torch

    waveform = tone(400, 16_000, 16_000)
    expected, _ = import_torchaudio().functional.speed(torch.from_numpy(waveform), 16_000, 0.9)
    np.testing.assert_array_equal(change_speed(waveform, 16_000, 0.9), expected.numpy())


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 40.0])
def test_noise_has_the_ratio_that_was_asked_for(snr_db: float) -> None:
    waveform = tone(400, 16_000, 16_000)
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    added = add_noise(waveform, noise, snr_db) - waveform
    assert 10 * np.log10((waveform**2).sum() / (added**2).sum()) == pytest.approx(snr_db, abs=0.01)
    assert np.corrcoef(added, noise)[0, 1] > 0.999
