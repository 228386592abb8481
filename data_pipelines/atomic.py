"""Files that appear whole or not at all: written beside their place, synced, renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_pipelines.errors import DataError

_SUFFIX = ".writing"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file (readable too) that becomes ``path`` when the block ends well, and vanishes otherwise.

    Raises:
        DataError: if it cannot be written.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file")
    # not the process id: several machines, or containers that count alike, may write into one folder
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        with temporary.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that were killed left behind in a folder."""
    for leftover in folder.glob(f".*{_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
