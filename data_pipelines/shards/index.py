"""The index beside each shard: where every member lies, its CRC-32, every sample's key, label and duration.

``SHARD.tar.index.json`` is one JSON object of columns; its last entry is the CRC-32 of the text before it.
Together the CRCs cover every byte of the shard exactly once: one per member, and ``frame_crc32`` for all the rest
(headers, padding, end mark). docs/data-format.md describes the fields.
"""

import json
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.atomic import replacing
from data_pipelines.errors import DataError
from data_pipelines.shards.tar import regular_members
from data_pipelines.transforms.audio import MEMBER_EXTENSIONS, audio_header

FORMAT = "data2vec-scale shard index"
VERSION = 2
"""Version 1 is the same without durations, and still read."""
UNKNOWN_DURATION = -1
LABEL_EXTENSION = "cls"
_CHUNK_BYTES = 8 << 20
_MAX_LABEL_BYTES = 20
_MAX_LABEL = 2**63 - 1
_CHECKSUM = b', "crc32": '
# webdataset.tariterators: a name up to the first dot of its last part is the key, the rest the extension;
# names that look like __this__ are metadata of the archive.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_METADATA = re.compile(r"__[^/]*__($|/)")


Integers = NDArray[np.integer[Any]]


class Column(NamedTuple):
    """One extension's members, one row per sample; ``offset`` is -1 where a sample has no such member."""

    offset: Integers
    size: Integers
    crc32: Integers


@dataclass(frozen=True)
class ShardIndex:
    """What is known about one shard of N samples."""

    shard_size_bytes: int
    frame_crc32: int
    """CRC-32 of all bytes that belong to no member, in file order."""
    keys: NDArray[np.bytes_]
    """(N,) UTF-8."""
    labels: Integers
    """(N,); -1 where a sample has none."""
    num_frames: Integers
    """(N,) samples per channel of its recording; 0 without one that can be decoded, ``UNKNOWN_DURATION`` if the
    index is of version 1."""
    sample_rates: Integers
    """(N,) hertz; 0 where ``num_frames`` is not positive."""
    columns: dict[str, Column]
    """By extension, in lower case."""

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """A sample's key as text."""
        return bytes(self.keys[row]).decode("utf-8", "surrogateescape")


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.with_name(shard.name + ".index.json")


def build_index(shard: Path) -> ShardIndex:
    """Read a whole shard and describe it.

    Raises:
        DataError: if the file is not a complete plain tar archive, or stock webdataset would refuse it.
    """
    try:
        with shard.open("rb") as stream:
            samples = _walk(shard, stream)
            extensions = sorted({extension for _, members in samples for extension in members})
            table = {
                extension: np.array([members.get(extension, (-1, 0)) for _, members in samples], dtype=np.int64)
                for extension in extensions
            }
            crcs, frame_crc32 = checksums(stream, [(rows[:, 0], rows[:, 1]) for rows in table.values()])
            durations = np.array([_duration(stream, members) for _, members in samples], dtype=np.int64).reshape(-1, 2)
            return ShardIndex(
                shard_size_bytes=stream.seek(0, 2),
                frame_crc32=frame_crc32,
                keys=_key_array([key for key, _ in samples]),
                labels=np.array([_label(shard, key, stream, members) for key, members in samples], dtype=np.int64),
                num_frames=durations[:, 0],
                sample_rates=durations[:, 1],
                columns={
                    extension: Column(rows[:, 0], rows[:, 1], crc)
                    for (extension, rows), crc in zip(table.items(), crcs, strict=True)
                },
            )
    except OSError as error:
        raise DataError(f"{shard}: cannot be read: {error.strerror or error}") from error


def write_index(shard: Path, index: ShardIndex) -> None:
    """Write the index beside its shard, atomically.

    Raises:
        DataError: if it cannot be written.
    """
    values = {
        "format": FORMAT,
        "version": VERSION,
        "shard_size_bytes": index.shard_size_bytes,
        "frame_crc32": index.frame_crc32,
        "keys": [index.key(row) for row in range(len(index))],
        "labels": index.labels.tolist(),
        "num_frames": index.num_frames.tolist(),
        "sample_rates": index.sample_rates.tolist(),
        "members": {
            extension: {name: rows.tolist() for name, rows in column._asdict().items()}
            for extension, column in index.columns.items()
        },
    }
    body = json.dumps(values).encode("ascii").removesuffix(b"}")
    with replacing(index_path(shard)) as stream:
        stream.write(body + _CHECKSUM + b"%d}\n" % zlib.crc32(body))


def read_index(shard: Path) -> ShardIndex:
    """Read the index of a shard, and see that the shard has the size it describes.

    Raises:
        DataError: if shard or index is missing or damaged, or they do not belong together; names the fix.
    """
    try:
        size = shard.stat().st_size
    except OSError as error:
        raise DataError(f"{shard}: shard is missing or unreadable ({error.strerror}); restore it") from error
    index = read_index_alone(shard)
    if size != index.shard_size_bytes:
        raise DataError(
            f"{shard}: has {size:,} bytes, its index says {index.shard_size_bytes:,}: cut short or replaced; "
            f"restore it, or if it is right {_rebuild(shard)}"
        )
    return index


def read_index_alone(shard: Path) -> ShardIndex:
    """Read the index of a shard without a look at the shard.

    Raises:
        DataError: if it is missing or damaged; names the fix.
    """
    path = index_path(shard)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: index is missing; {_rebuild(shard)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    body, found, checksum = text.rpartition(_CHECKSUM)
    if not found or checksum != b"%d}\n" % zlib.crc32(body):
        raise DataError(f"{path}: index is damaged; check the shard against another copy, then {_rebuild(shard)}")
    try:
        return _parse(json.loads(text))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"{path}: not an index that this version reads ({error}); {_rebuild(shard)}") from error


def compact(index: ShardIndex) -> ShardIndex:
    """The same numbers in the smallest types that hold them, to be kept; arithmetic needs int64.

    A run over 100 million images keeps 38 bytes per sample so, with keys of 13 letters, instead of 85.
    """
    columns = {name: Column(*map(_smallest, column)) for name, column in index.columns.items()}
    return replace(
        index,
        labels=_smallest(index.labels),
        num_frames=_smallest(index.num_frames),
        sample_rates=_smallest(index.sample_rates),
        columns=columns,
    )


def _smallest(values: Integers) -> Integers:
    ends = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    return values.astype(np.promote_types(*map(np.min_scalar_type, ends)))


def _rebuild(shard: Path) -> str:
    return f"'d2v shards index --force {shard}' makes a new one"


def checksums(stream: BinaryIO, spans: list[tuple[Integers, Integers]]) -> tuple[list[NDArray[np.int64]], int]:
    """CRC-32 of every span, and of everything between them, in one pass over the file.

    Args:
        stream: a file open for reading.
        spans: columns of (offset, size); spans must not overlap, offset -1 means none.
    """
    crcs = [np.zeros(len(offset), dtype=np.int64) for offset, _ in spans]
    in_file_order = sorted(
        (int(start), int(size), column, row)
        for column, (offset, sizes) in enumerate(spans)
        for row, (start, size) in enumerate(zip(offset, sizes, strict=True))
        if start >= 0
    )
    end = stream.seek(0, 2)
    stream.seek(0)
    frame_crc32 = position = 0
    for start, size, column, row in in_file_order:
        frame_crc32 = _crc32_of(stream, start - position, frame_crc32)
        crcs[column][row] = _crc32_of(stream, size, 0)
        position = start + size
    return crcs, _crc32_of(stream, end - position, frame_crc32)


def _crc32_of(stream: BinaryIO, num_bytes: int, crc32: int) -> int:
    while num_bytes > 0:
        chunk = stream.read(min(num_bytes, _CHUNK_BYTES))
        if not chunk:
            return -1  # past the end: equal to no CRC
        crc32 = zlib.crc32(chunk, crc32)
        num_bytes -= len(chunk)
    return crc32


def _walk(shard: Path, stream: BinaryIO) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """Samples as (key, extension -> (offset, size)), grouped as webdataset does."""
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    for member in regular_members(shard, stream):
        name = _NAME.fullmatch(member.name)
        if name is None or _METADATA.match(member.name):
            continue
        key, extension = name[1], name[2].lower()
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
        if extension in samples[-1][1]:
            raise DataError(f"{shard}: sample {key!r} has two members .{extension}")
        samples[-1][1][extension] = (member.offset_data, member.size)
    return samples


def _label(shard: Path, key: str, stream: BinaryIO, members: dict[str, tuple[int, int]]) -> int:
    """The class number in a sample's .cls member; -1 if it has none."""
    offset, size = members.get(LABEL_EXTENSION, (0, 0))
    if not 0 < size <= _MAX_LABEL_BYTES:
        return -1
    stream.seek(offset)
    text = stream.read(size).strip()
    label = int(text) if text.isdigit() else -1
    if label > _MAX_LABEL:
        raise DataError(f"{shard}: sample {key!r}: label {label} is more than {_MAX_LABEL}, the highest that fits")
    return label


def _duration(stream: BinaryIO, members: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Frames and sample rate of a sample's recording; zeros if it has none that can be decoded."""
    extension = next((one for one in MEMBER_EXTENSIONS if one in members), None)
    if extension is None:
        return 0, 0
    offset, size = members[extension]
    stream.seek(offset)
    try:
        return audio_header(stream.read(size))
    except DataError:
        return 0, 0


def _key_array(keys: list[str]) -> NDArray[np.bytes_]:
    return np.array([key.encode("utf-8", "surrogateescape") for key in keys], dtype=np.bytes_)


def _parse(values: dict[str, Any]) -> ShardIndex:
    if values["format"] != FORMAT or values["version"] not in (1, VERSION):
        raise ValueError(f"format {values['format']!r} version {values['version']!r}")
    columns = {
        str(extension): Column(*(np.array(rows[name], dtype=np.int64) for name in Column._fields))
        for extension, rows in values["members"].items()
    }
    keys = _key_array(values["keys"])
    if values["version"] == 1:
        values |= _unknown_durations(len(keys), columns)
    index = ShardIndex(
        shard_size_bytes=int(values["shard_size_bytes"]),
        frame_crc32=int(values["frame_crc32"]),
        keys=keys,
        labels=np.array(values["labels"], dtype=np.int64),
        num_frames=np.array(values["num_frames"], dtype=np.int64),
        sample_rates=np.array(values["sample_rates"], dtype=np.int64),
        columns=columns,
    )
    for column in columns.values():
        if any(rows.shape != (len(index),) for rows in column):
            raise ValueError("columns of different length")
        if (column.size < 0).any() or (column.offset + column.size > index.shard_size_bytes).any():
            raise ValueError("a member outside the shard")
    if any(rows.shape != (len(index),) for rows in (index.labels, index.num_frames, index.sample_rates)):
        raise ValueError("columns of different length")
    return index


def _unknown_durations(num_samples: int, columns: dict[str, Column]) -> dict[str, Any]:
    """What version 1 lacks: it does for shards without audio."""
    has_audio = np.zeros(num_samples, dtype=bool)
    for extension in columns.keys() & set(MEMBER_EXTENSIONS):
        has_audio |= columns[extension].offset >= 0
    return {"num_frames": np.where(has_audio, UNKNOWN_DURATION, 0), "sample_rates": np.zeros(num_samples, np.int64)}
