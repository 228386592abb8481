import io

import numpy as np
import pytest
import soundfile

from data_pipelines.errors import DataError
from data_pipelines.transforms.audio import audio_header, decode_audio
from data_pipelines.transforms.mp3 import _frame, is_mp3, with_frame_count
from tests.unit.data_pipelines.speech import encode, speech

FRAME_SAMPLES = {True: 1152, False: 576}  # by whether the sample rate is one of MPEG 1


def without_first_frame(data: bytes) -> bytes:
    """Of what an encoder writes: without the frame that says how many follow."""
    frame = _frame(data, 0)
    assert frame is not None
    return data[frame.size :]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
def test_files_without_a_table_of_contents_are_decoded_to_their_end(rate: int, channels: int) -> None:
    waveform = np.concatenate([np.zeros(rate, np.float32), speech(rate, 1.5, rate)])  # the bit rate varies
    data = encode(np.stack([waveform] * channels, axis=1), rate, "MP3")
    plain = without_first_frame(data)
    assert with_frame_count(data) is data
    guessed = soundfile.info(io.BytesIO(plain)).frames
    assert abs(guessed - len(waveform)) > rate / 8  # what libsndfile alone makes of it

    expected, _ = decode_audio(data, 60)
    decoded, _ = decode_audio(plain, 60)
    assert audio_header(plain).num_frames == len(decoded)
    frame_samples = FRAME_SAMPLES[rate >= 32_000]
    assert len(waveform) < len(decoded) < len(waveform) + 4 * frame_samples  # with what the encoder adds at both ends
    aligned = decoded[576 : 576 + len(expected)]
    np.testing.assert_allclose(aligned, expected[: len(aligned)], atol=1e-6)


def test_files_that_are_cut_or_damaged_between_frames_are_refused() -> None:
    plain = without_first_frame(encode(speech(1, 2), 16_000, "MP3"))
    with pytest.raises(DataError, match=r"^cut short: its last MP3 frame is not whole$"):
        with_frame_count(plain[:-1])
    second = len(plain) - len(without_first_frame(plain))
    with pytest.raises(DataError, match=rf"^damaged MP3 frame at byte {second:,}$"):
        with_frame_count(plain[:second] + b"\0\0" + plain[second + 2 :])


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), b"APETAGEX" + b"x" * 50, bytes(400)])
def test_tags_and_zeros_at_the_end_are_no_frames(tail: bytes) -> None:
    plain = without_first_frame(encode(speech(1, 2), 16_000, "MP3"))
    assert with_frame_count(plain + tail) == with_frame_count(plain) + tail
    assert audio_header(plain + tail) == audio_header(plain)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfb", b"\xff\xf1\x50\x80" * 20, b"\xff\xfd\x90\x00" * 20, b"\xff\xeb\x90\x00", b"\xff\xfb\xf0\x00"],
    ids=["empty", "short", "aac", "layer II", "reserved version", "bad bit rate"],
)
def test_other_bytes_are_no_mp3(data: bytes) -> None:
    assert not is_mp3(data)
