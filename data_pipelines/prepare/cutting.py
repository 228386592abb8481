"""Files of a source -> keys and shards, before any is decoded: common to the kinds that store files as they are."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from data_pipelines.errors import DataError

_MAX_FILE_BYTES = 256 << 20
_TAR_OVERHEAD_BYTES = 1024  # header and padding of a member, about
_MEMBERS = 2  # the file, and what belongs to it

Item = TypeVar("Item")


def check_source(source: Path, out: Path) -> None:
    """See that a source exists and that the result will not be part of it.

    Raises:
        DataError: if not.
    """
    if not source.exists():
        raise DataError(f"{source}: does not exist")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out}: lies inside the source {source}; choose a folder outside of it")


def unique_keys(paths: Iterable[Sequence[str]]) -> list[str]:
    """A key for every path (its parts, file name last), in order; a second one of the same key gets ``-2``."""
    taken: set[str] = set()
    keys = []
    for *folders, name in paths:
        plain = key = "/".join(map(_key_part, (*folders, name.partition(".")[0])))
        number = 1
        while key in taken:
            number += 1
            key = f"{plain}-{number}"
        taken.add(key)
        keys.append(key)
    return keys


def _key_part(part: str) -> str:
    """A name without dots (webdataset cuts keys there), and not one that looks like webdataset's __metadata__."""
    return re.sub(r"[^\w-]+", "_", part).strip("_") or "x"


def cut(
    items: Sequence[Item], sizes: Sequence[int], *, shard_size_bytes: int, max_samples_per_shard: int
) -> list[Sequence[Item]]:
    """Shards by source size, so that which sample goes where is known before anything is decoded.

    Args:
        items: one per file.
        sizes: of the files in bytes.
        shard_size_bytes: a shard is closed before it grows beyond this; one larger file still fits.
        max_samples_per_shard: and when it has so many.
    """
    shards: list[Sequence[Item]] = []
    start = filled = 0
    for number, size in enumerate(sizes):
        cost = size + _MEMBERS * _TAR_OVERHEAD_BYTES
        if number > start and (filled + cost > shard_size_bytes or number - start == max_samples_per_shard):
            shards.append(items[start:number])
            start, filled = number, 0
        filled += cost
    if start < len(items):
        shards.append(items[start:])
    return shards


def read_part(file: str, offset: int, size: int) -> bytes:
    """The bytes of one file of the source; inside an archive it begins at ``offset``.

    Raises:
        DataError: if it is too large, cannot be read, or changed since its size was taken.
    """
    if size > _MAX_FILE_BYTES:
        raise DataError(f"{size:,} bytes are more than the cap of {_MAX_FILE_BYTES:,}")
    try:
        with open(file, "rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise DataError("became shorter while it was read")
    return data
