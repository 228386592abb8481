"""Text files of a corpus: which there are, how much text each holds, and cutting them into pieces.

Sizes and offsets are those of the decompressed text. Plain files are read from any offset; a compressed one has to be
decompressed up to there, so many of a gigabyte are faster than one of a hundred.
"""

import gzip
import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import zstandard

from data_pipelines.errors import DataError
from data_pipelines.jobs import Advance, Report, run_jobs

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIXES = (".txt", ".jsonl")
_COMPRESSIONS = (".gz", ".zst")
DAMAGE = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""What reading a file may raise."""
_CHUNK_BYTES = 1 << 20
_ZSTD_INPUT_BYTES = 1 << 10  # gives 32 MiB at most, however the file was made to expand


@dataclass(frozen=True)
class TextFile:
    """A file of the corpus."""

    name: str
    """For people: relative to the source."""
    path: Path
    size: int
    """Bytes of text, as far as it can be read; what the file takes on disk until ``measure_sizes``."""
    damage: str = ""
    """Why it cannot be read to its end; empty if it can."""

    @cached_property
    def suffix(self) -> str:
        """Of the text in it: one of ``SUFFIXES``, or something that we do not read."""
        return Path(self.name.removesuffix(self.compression)).suffix

    @cached_property
    def compression(self) -> str:
        """``.gz``, ``.zst`` or empty."""
        suffix = Path(self.name).suffix
        return suffix if suffix in _COMPRESSIONS else ""


class Span(NamedTuple):
    """Bytes [begin, end) of a file's text."""

    file: TextFile
    begin: int
    end: int


def find_text_files(source: Path) -> list[TextFile]:
    """The files of a corpus in a fixed order.

    Args:
        source: one file, or a folder of files and folders. Files of other kinds are in the list too: their reader
            rejects them by name.
    Raises:
        DataError: if there is no .txt or .jsonl file, or ``source`` cannot be read.
    """
    try:
        paths = [source] if source.is_file() else _walk(source)
        files = [
            TextFile(path.name if path == source else str(path.relative_to(source)), path, path.stat().st_size)
            for path in paths
        ]
    except OSError as error:
        raise DataError(f"{error.filename or source}: cannot be read: {error.strerror}") from error
    if not any(file.suffix in SUFFIXES for file in files):
        raise DataError(
            f"{source}: {'is' if source.is_file() else 'holds'} no .txt or .jsonl file (or .gz, .zst of one)"
        )
    return files


def _walk(source: Path) -> list[Path]:
    paths = []
    for folder, folders, names in os.walk(source, followlinks=True, onerror=_raise):
        folders.sort()
        paths += [path for name in sorted(names) if (path := Path(folder, name)).is_file()]
    return paths


def _raise(error: OSError) -> None:
    raise error


def measure_sizes(files: Sequence[TextFile], *, num_workers: int, report: Report) -> list[TextFile]:
    """Decompress what is compressed, to know how much text each file holds; files of other kinds hold none.

    Args:
        files: as ``find_text_files`` gives them.
        num_workers: processes; each reads one file at a time.
        report: receives the number of stored bytes done, of all files.
    Returns:
        The files with ``size`` and ``damage``.
    """

    def measured(job: int, advance: Advance) -> TextFile:
        file = files[job]
        result = _measured(file) if file.suffix in SUFFIXES else replace(file, size=0)
        advance(file.size)
        return result

    return run_jobs(measured, len(files), num_workers=num_workers, report=report)


def _measured(file: TextFile) -> TextFile:
    size = 0
    try:
        with open_text(file) as stream:
            if not file.compression:
                return file
            while chunk := stream.read(_CHUNK_BYTES):
                size += len(chunk)
    except DAMAGE as error:
        return replace(file, size=size, damage=describe_damage(error))
    return replace(file, size=size)


def describe_damage(error: BaseException) -> str:
    """One line for an exception of ``DAMAGE``."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be read to its end: {reason}"


def open_text(file: TextFile) -> BinaryIO:
    """The text of a file from its start; reading may raise ``DAMAGE``."""
    if file.compression == ".gz":
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.open(file.path, "rb")), _CHUNK_BYTES))
    stream = file.path.open("rb", buffering=_CHUNK_BYTES)
    if file.compression == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdStream(stream), _CHUNK_BYTES))
    return stream


def skip(stream: BinaryIO, file: TextFile, num_bytes: int) -> None:
    """Go ``num_bytes`` on from the start of a file's text."""
    if not file.compression:
        stream.seek(num_bytes)
        return
    while num_bytes > 0 and (chunk := stream.read(min(num_bytes, _CHUNK_BYTES))):
        num_bytes -= len(chunk)


class _ZstdStream(io.RawIOBase):
    """Decompressed content. zstandard's own reader takes a file that was cut short for a whole one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        while not self._ready:
            data = self._compressed or self._stream.read(_ZSTD_INPUT_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                return 0
            frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(frame.decompress(data))
            self._compressed = frame.unused_data if frame.eof else b""
            self._frame = None if frame.eof else frame
        view = memoryview(buffer).cast("B")
        size = min(len(view), len(self._ready))
        view[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._stream.close()
        super().close()


def cut_into_pieces(files: Sequence[TextFile], piece_size_bytes: int) -> list[list[Span]]:
    """The corpus as one text, every ``piece_size_bytes`` of it; the last piece may be smaller."""
    pieces: list[list[Span]] = [[]]
    room = piece_size_bytes
    for file in files:
        begin = 0
        while True:
            end = min(file.size, begin + room)
            pieces[-1].append(Span(file, begin, end))
            room -= end - begin
            begin = end
            if begin == file.size:
                break
            pieces.append([])
            room = piece_size_bytes
    return pieces


def spread_windows(files: Sequence[TextFile], num_bytes: int, num_windows: int) -> list[Span]:
    """Windows of ``num_bytes`` together, evenly spread over the corpus; all of it if it is not larger."""
    total = sum(file.size for file in files)
    if total <= num_bytes:
        return [Span(file, 0, file.size) for file in files]
    spans = []
    start = 0
    windows = [(total * place // num_windows, num_bytes // num_windows) for place in range(num_windows)]
    for file in files:
        for window, size in windows:
            begin, end = max(window - start, 0), min(window + size - start, file.size)
            if begin < end:
                spans.append(Span(file, begin, end))
        start += file.size
    return spans
