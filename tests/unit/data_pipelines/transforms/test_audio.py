import io
import struct

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional

from data_pipelines.config import AudioSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.transforms.audio import audio_bytes, audio_header, check_audio, decode_audio, load_audio
from data_pipelines.transforms.resampling import length_at_speed, resampled_length
from tests.unit.data_pipelines.speech import encode, speech

FORMATS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", ""), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "")]
LOSSLESS = {("WAV", "PCM_16"): 2**-15, ("WAV", "FLOAT"): 0.0, ("FLAC", ""): 2**-15}
AS_IT_IS = AudioSourceConfig(normalize=False)


def draws(key: int = 0) -> np.random.Generator:
    return np.random.default_rng(key)


def opus_rate(rate: int, subtype: str) -> int:
    return 48_000 if subtype == "OPUS" else rate  # it knows few rates


@pytest.mark.parametrize(("format_name", "subtype"), FORMATS)
@pytest.mark.parametrize("num_samples", [2_000, 16_000, 40_017])
def test_every_format_is_decoded_to_the_length_of_its_header(format_name: str, subtype: str, num_samples: int) -> None:
    waveform = speech(1, 3)[:num_samples]
    data = encode(waveform, 16_000, format_name, subtype)
    decoded, rate = decode_audio(data, 10)
    assert (len(decoded), rate, decoded.dtype) == (num_samples, 16_000, np.float32)
    assert audio_header(data) == (num_samples, 16_000)
    assert check_audio(data, 10) == format_name.lower()
    if (format_name, subtype) in LOSSLESS:
        np.testing.assert_allclose(decoded, waveform, atol=LOSSLESS[format_name, subtype])
    else:
        assert np.corrcoef(decoded, waveform)[0, 1] > 0.95


@pytest.mark.parametrize(("format_name", "subtype"), FORMATS)
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_channels_are_averaged_and_rates_converted(format_name: str, subtype: str, rate: int) -> None:
    rate = opus_rate(rate, subtype)
    left, right = speech(1, 2, rate), speech(2, 2, rate)
    loaded = load_audio(encode(np.stack([left, right], axis=1), rate, format_name, subtype), AS_IT_IS)
    assert len(loaded) == resampled_length(2 * rate, rate, 16_000) == 32_000
    expected = load_audio(encode((left + right) / 2, rate, "WAV", "FLOAT"), AS_IT_IS)
    assert np.corrcoef(loaded, expected)[0, 1] > (0.999 if (format_name, subtype) in LOSSLESS else 0.9)


def test_opposite_channels_cancel() -> None:
    waveform = speech(3, 1)
    with_opposites = np.stack([waveform, -waveform], axis=1)
    np.testing.assert_allclose(decode_audio(encode(with_opposites), 10)[0], 0, atol=2**-15)


def test_long_recordings_are_decoded_in_blocks_without_seams() -> None:
    waveform = np.stack([speech(n, 70) for n in range(2)], axis=1)
    np.testing.assert_allclose(decode_audio(encode(waveform), 80)[0], waveform.mean(axis=1), atol=2**-15)


def test_the_whole_recording_is_normalised_as_by_fairseq() -> None:
    waveform = speech(4, 3) + 0.1
    data = encode(waveform, 16_000, "WAV", "FLOAT")
    expected = functional.layer_norm(torch.from_numpy(waveform), waveform.shape)
    np.testing.assert_array_equal(load_audio(data, AudioSourceConfig()), expected.numpy())
    np.testing.assert_array_equal(load_audio(data, AS_IT_IS), waveform)
    loaded = load_audio(data, AudioSourceConfig())
    assert (loaded.mean(), loaded.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=5e-3))


def test_silence_stays_silence() -> None:
    assert not load_audio(encode(np.zeros(16_000, np.float32)), AudioSourceConfig()).any()


def test_augmentation_follows_from_the_generator_alone() -> None:
    config = AudioSourceConfig(speed_factors=(0.9, 1.0, 1.1), noise_prob=0.5, normalize=False)
    data = encode(speech(5, 2))
    plain = load_audio(data, config)
    np.testing.assert_array_equal(plain, load_audio(data, AS_IT_IS, draws()))
    lengths = {int(length_at_speed(32_000, 16_000, factor)) for factor in config.speed_factors}
    seen = set()
    for key in range(40):
        loaded = load_audio(data, config, draws(key))
        np.testing.assert_array_equal(loaded, load_audio(data, config, draws(key)))
        is_noisy = len(loaded) == len(plain) and not np.array_equal(loaded, plain)
        seen.add((len(loaded), is_noisy))
    assert {length for length, _ in seen} == lengths == {35_556, 32_000, 29_091}
    assert {(32_000, True), (32_000, False)} <= seen


def test_the_number_of_threads_changes_nothing() -> None:
    config = AudioSourceConfig(speed_factors=(0.9, 1.1), noise_prob=1.0)
    data = encode(speech(5, 1, 22_050), 22_050)
    results = []
    for num_threads in (1, 2, 4):  # the fixture ``one_thread`` restores it
        torch.set_num_threads(num_threads)
        results.append([load_audio(data, config, draws(key)) for key in range(6)])
        assert torch.get_num_threads() == num_threads
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_noise_lies_in_the_range_of_the_configuration() -> None:
    config = AudioSourceConfig(noise_prob=1.0, noise_snr_db=(5.0, 15.0), normalize=False)
    data = encode(speech(6, 1))
    plain = load_audio(data, config)
    noises = [load_audio(data, config, draws(key)) - plain for key in range(30)]
    ratios = [10 * np.log10((plain**2).sum() / (noise**2).sum()) for noise in noises]
    assert 5 <= min(ratios) < 7 < 13 < max(ratios) <= 15


@pytest.mark.parametrize(("format_name", "subtype"), FORMATS)
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_files_that_were_cut_short_are_refused(format_name: str, subtype: str, kept: float) -> None:
    data = encode(speech(7, 3), 16_000, format_name, subtype)
    with pytest.raises(DataError, match=r"is empty|not a WAV|cut short|cannot be decoded: |less than 25 ms"):
        check_audio(data[: int(len(data) * kept)], 60)


@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_not_even_the_last_bytes_may_be_missing(num_bytes: int) -> None:
    for format_name, subtype in FORMATS:
        with pytest.raises(DataError, match=r"cut short|cannot be decoded: "):
            check_audio(encode(speech(7, 3), 16_000, format_name, subtype)[:-num_bytes], 60)


def test_flipped_bits_of_a_flac_file_are_noticed() -> None:
    data = bytearray(encode(speech(8, 2)))
    data[len(data) // 2] ^= 0x10
    with pytest.raises(DataError, match="^cannot be decoded: "):
        check_audio(bytes(data), 60)


@pytest.mark.parametrize("announced", [0x7FFF_F000, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_wav_from_a_pipe_is_read_to_its_end(announced: int) -> None:
    """espeak-ng, sox and ffmpeg write the length before they know it."""
    waveform = speech(9, 1)
    data = bytearray(encode(waveform, 16_000, "WAV"))
    assert data[36:40] == b"data"
    data[40:44] = struct.pack("<I", announced)
    decoded, _ = decode_audio(bytes(data), 60)
    np.testing.assert_allclose(decoded, waveform, atol=2**-15)


def test_flac_from_a_pipe_is_refused_for_its_length_is_not_told() -> None:
    data = bytearray(encode(speech(10, 1)))
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that tell the number of samples
    data[22:26] = bytes(4)
    for function in (audio_header, lambda data: decode_audio(data, 60)):
        with pytest.raises(DataError, match="^does not tell its length, as FLAC that was written to a pipe"):
            function(bytes(data))


@pytest.mark.parametrize("format_name", ["FLAC", "MP3"])
def test_a_tag_before_the_recording_is_skipped(format_name: str) -> None:
    data = encode(speech(11, 1), 16_000, format_name)
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 2]) + b"x" * 130  # sizes count 7 bits per byte
    np.testing.assert_array_equal(decode_audio(tag + data, 60)[0], decode_audio(data, 60)[0])


def test_three_hours_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(np.zeros(3 * 3600 * 1000, np.float32), 1_000)
    assert len(data) < 100_000
    assert audio_header(data) == (10_800_000, 1_000)

    def explode(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(soundfile.SoundFile, "read", explode)
    with pytest.raises(DataError, match=r"^10,800.0 s are more than the cap of 600.0 s \(data.audio.max_decoded_sec"):
        load_audio(data, AudioSourceConfig())


@pytest.mark.parametrize("num_samples", [0, 1, 399])
def test_too_few_samples_are_refused(num_samples: int) -> None:
    data = encode(speech(12, 1)[:num_samples], 16_000, "WAV")
    with pytest.raises(DataError, match=rf"^holds {num_samples} samples, less than 25 ms$"):
        check_audio(data, 60)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_numbers_are_refused(value: float) -> None:
    waveform = speech(13, 1).copy()
    waveform[5000] = value
    with pytest.raises(DataError, match=r"^holds samples that are infinite, no numbers \(NaN\) or absurdly large$"):
        load_audio(encode(waveform, 16_000, "WAV", "FLOAT"), AudioSourceConfig())


@pytest.mark.parametrize("format_name", ["AIFF", "AU", "CAF", "W64", "RF64", "VOC", "NIST"])
def test_other_formats_are_refused_though_libsndfile_knows_them(format_name: str) -> None:
    with pytest.raises(DataError, match="^not a WAV, FLAC, OGG or MP3 recording$"):
        check_audio(encode(speech(14, 1), 16_000, format_name), 60)


@pytest.mark.parametrize("data", [b"text", bytes(5000), b"RIFF\0\0\0\0AVI LIST", b"ID3", b"ID3" + bytes(20)])
def test_other_files_are_no_recordings(data: bytes) -> None:
    with pytest.raises(DataError, match="^not a WAV, FLAC, OGG or MP3 recording$"):
        check_audio(data, 60)


@pytest.mark.parametrize("data", [b"RIFF\0\0\0\0WAVEfmt ", b"OggS" + bytes(50), b"fLaC" + bytes(50)])
def test_headers_alone_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^(cannot be decoded: .+|cut short: .+)$"):
        check_audio(data, 60)


@pytest.mark.parametrize(("rate", "channels"), [(999, 1), (192_001, 1), (16_000, 9)])
def test_absurd_headers_are_refused(rate: int, channels: int) -> None:
    data = encode(np.zeros((rate, channels), np.float32), rate, "WAV")
    with pytest.raises(DataError, match=rf"^{channels} channels of {rate:,} Hz are no usual recording$"):
        audio_header(data)


def test_messages_are_one_line_without_addresses() -> None:
    whole = encode(speech(15, 1), 16_000, "OGG")
    for size in range(0, len(whole), 97):
        with pytest.raises(DataError) as caught:
            check_audio(whole[:size], 60)
        assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


def test_one_member_is_the_recording() -> None:
    assert audio_bytes({"txt": b"HELLO", "wav": b"x"}) == b"x"
    assert audio_bytes({"mp3": b"m", "flac": b"f"}) == b"f"
    with pytest.raises(DataError, match=r"^has no audio member \(.flac, .wav, .+ .mp3\), only .cls, .jpg$"):
        audio_bytes({"cls": b"1", "jpg": b"x"})


def test_wav_with_other_chunks_is_read() -> None:
    data = encode(speech(16, 1), 16_000, "WAV")
    extra = b"LIST" + struct.pack("<I", 5) + b"hello\0"  # odd sizes are padded
    np.testing.assert_array_equal(decode_audio(data[:12] + extra + data[12:], 60)[0], decode_audio(data, 60)[0])
    with pytest.raises(DataError, match="^cut short: "):
        check_audio((data[:12] + extra + data[12:])[:-10], 60)
    assert soundfile.info(io.BytesIO(data[:-10])).frames == 15_995  # which libsndfile would take for all
