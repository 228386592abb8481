"""Reading tar archives strictly: ``tarfile`` takes a damaged header for the end of the archive, this does not."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_pipelines.errors import DataError

_CHUNK_BYTES = 8 << 20
_END_MARK_BYTES = 1024


def regular_members(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Headers of all regular files in an archive, in order; ``offset_data`` and ``size`` say where each one lies.

    Args:
        path: for messages.
        stream: the archive, open for reading at random.
    Raises:
        DataError: if it is not a plain tar archive that is whole to its end mark, or holds sparse files.
    """
    try:
        archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 (the stream is the caller's)
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep every header
            if member.issparse():
                raise DataError(f"{path}: {member.name!r} is a sparse file, which cannot be read at random")
            if member.isreg():
                yield member
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a whole, uncompressed tar archive ({error})") from error
    _check_end(path, stream, archive.offset)


def _check_end(path: Path, stream: BinaryIO, position: int) -> None:
    stream.seek(position)
    num_zeros = 0
    while chunk := stream.read(_CHUNK_BYTES):
        if chunk.strip(b"\0"):
            raise DataError(f"{path}: damaged tar header at byte {position:,}")
        num_zeros += len(chunk)
    if num_zeros < _END_MARK_BYTES:
        raise DataError(f"{path}: no end mark at byte {position:,}: cut short, or never closed by its writer")
