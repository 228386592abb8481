"""The frames of an MP3 file: without a table of contents libsndfile guesses the length, and stops or fails there.

Most encoders put a frame "Xing" (or "Info") first, which says how many follow. For a file without one libsndfile
divides its size by the bit rate of the first frame: of a file of variable bit rate that is anything (measured: 13
times too long, or half, and then the other half is never decoded). So the frames are counted here and such a frame is
put in front.
"""

import struct
from typing import NamedTuple

from data_pipelines.errors import DataError

_HEADER_BYTES = 4
_BITRATES = {  # kbit/s of layer III by MPEG version, 2.5 as 2; frames of index 0 ("free") do not tell their size
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8_000),
}  # by version bits
_ROOMY = 9  # index of a bit rate whose frames hold more than a table of contents, at any sample rate
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")


class _Frame(NamedTuple):
    size: int
    """In bytes, header included."""
    side_bytes: int
    """Between the header and where a table of contents begins."""


def is_mp3(data: bytes) -> bool:
    """Whether a file begins with a frame of layer III; tags before it must be gone already."""
    return _frame(data, 0) is not None


def with_frame_count(data: bytes) -> bytes:
    """The same MP3 file, led by a frame that says how many there are.

    Args:
        data: for which ``is_mp3`` is true.
    Raises:
        DataError: if a frame is damaged, or the last one cut short.
    """
    first = _frame(data, 0)
    assert first is not None
    table = _HEADER_BYTES + first.side_bytes
    if data[table : table + 4] in (b"Xing", b"Info"):
        return data
    num_frames = _count_frames(data)
    header = bytes([data[0], data[1] | 1, _ROOMY << 4 | data[2] & 0x0C, data[3]])  # no checksum, no padding byte
    front = _frame(header, 0)
    assert front is not None
    content = header + bytes(first.side_bytes) + b"Xing" + struct.pack(">II", 1, num_frames)
    return content.ljust(front.size, b"\0") + data


def _count_frames(data: bytes) -> int:
    position = number = 0
    while position < len(data):
        frame = _frame(data, position)
        if frame is None:
            rest = data[position:]
            if rest.startswith(_TAGS) or not rest.strip(b"\0"):
                break
            raise DataError(f"damaged MP3 frame at byte {position:,}")
        position += frame.size
        number += 1
    if position > len(data):
        raise DataError("cut short: its last MP3 frame is not whole")
    return number


def _frame(data: bytes, position: int) -> _Frame | None:
    """The frame of layer III that begins at a byte; None if none does."""
    header = data[position : position + _HEADER_BYTES]
    if len(header) < _HEADER_BYTES or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version_bits, rate_index, bitrate_index = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version_bits == 1 or rate_index == 3 or bitrate_index in (0, 15):
        return None
    version = 1 if version_bits == 3 else 2
    is_mono = header[3] >> 6 == 3
    bits = (144_000 if version == 1 else 72_000) * _BITRATES[version][bitrate_index]
    size = bits // _SAMPLE_RATES[version_bits][rate_index] + (header[2] >> 1 & 1)
    return _Frame(size, {(1, False): 32, (1, True): 17, (2, False): 17, (2, True): 9}[version, is_mono])
