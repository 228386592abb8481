"""A folder (or a tree of them) that appears whole or not at all: written beside its place, synced, renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import RunError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        RunError: if ``path`` holds something already, or cannot be written.
    """
    refuse_occupied(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.writing-"))
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield temporary
        for path_inside in [*temporary.rglob("*"), temporary]:
            path_inside.chmod(0o755 if path_inside.is_dir() else 0o644)  # mkdtemp and safetensors make theirs private
            _sync(path_inside)
        os.rename(temporary, path)  # replaces an empty folder, refuses any other
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_occupied(path: Path) -> None:
    """Raise RunError unless ``path`` is free or an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path}: exists and is not empty; choose another folder or remove it")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
