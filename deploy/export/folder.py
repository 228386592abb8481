"""Folders and files that appear whole or not at all: written beside their place, synced, renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pretrain.errors import RunError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        RunError: if ``path`` holds something already, or cannot be written.
    """
    refuse_occupied(path)
    with _temporary_folder(path) as temporary:
        yield temporary
        _settle(temporary)
        os.rename(temporary, path)  # replaces an empty folder, refuses any other


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder; what the block writes there moves beside ``path``.

    A second file may be written with it, named ``path``.SUFFIX; it moves first, so that ``path`` is there last.

    Raises:
        RunError: if ``path`` exists, or cannot be written.
    """
    refuse_existing(path)
    with _temporary_folder(path) as temporary:
        yield temporary / path.name
        _settle(temporary)
        files = sorted(temporary.iterdir(), key=lambda one: one.name == path.name)
        for written in files:
            refuse_existing(path.with_name(written.name))
        for written in files:
            os.rename(written, path.with_name(written.name))


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that is gone after the block."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.writing-"))
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield temporary
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Let others read what is in a folder, and see it on the disk."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # mkdtemp and safetensors make theirs private
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def refuse_existing(path: Path) -> None:
    """Raise RunError if there is something at ``path``."""
    if path.exists():
        raise RunError(f"{path}: exists; choose another file or remove it")


def refuse_occupied(path: Path) -> None:
    """Raise RunError unless ``path`` is free or an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path}: exists and is not empty; choose another folder or remove it")
