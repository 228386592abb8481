"""Checkpoints on disk: written beside their place, renamed when whole, deleted when there are newer ones."""

import os
import secrets
import shutil
from pathlib import Path

from pretrain.errors import RunError


def step_directory(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first. A directory that is still being written has another name."""
    return sorted((run_dir / "checkpoints").glob("step-*"))


def begin(run_dir: Path, step: int) -> Path:
    """An empty directory to write the checkpoint of ``step`` into; leftovers of killed writers are removed.

    Raises:
        RunError: if it cannot be made.
    """
    parent = run_dir / "checkpoints"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in [*parent.glob(".writing-*"), *parent.glob(".deleting-*")]:
            shutil.rmtree(leftover)
        directory = parent / f".writing-step-{step:08d}"
        directory.mkdir()
    except OSError as error:
        raise RunError(f"{parent}: cannot write checkpoints here: {error.strerror}") from error
    return directory


def commit(run_dir: Path, writing: Path, step: int, keep: int, after: int | None) -> Path:
    """Make a fully written directory the newest checkpoint and delete those beyond ``keep``.

    The order matters: content on disk (each file is synced by its writer, which may be another machine), then the
    name, then ``latest``, then deletion; a kill between any two leaves a whole checkpoint behind. What is newer than
    ``after`` was passed over when the run went on: it neither counts as kept nor is deleted, for it may be whole and
    was only unreadable then.

    Args:
        run_dir: of the run.
        writing: from ``begin``.
        step: that of the checkpoint.
        keep: how many stay, this one included.
        after: step of the checkpoint that the run has gone on from, or has written last; None if there is none.
    """
    sync(writing)
    final = step_directory(run_dir, step)
    for other in complete_checkpoints(run_dir):
        if after is None or other.name > step_directory(run_dir, after).name:
            os.rename(other, other.with_name(f"refused-{other.name}-{secrets.token_hex(4)}"))
    os.rename(writing, final)
    sync(final.parent)
    pointer = final.parent / ".latest"
    pointer.write_text(final.name + "\n", encoding="utf-8")
    sync(pointer)
    os.replace(pointer, final.parent / "latest")
    sync(final.parent)
    for old in complete_checkpoints(run_dir)[:-keep]:
        _delete(old)
    return final


def locate(path: Path) -> Path:
    """The checkpoint that ``path`` means: itself, or the newest of a run directory or its checkpoints/.

    Raises:
        RunError: if there is none.
    """
    if (path / "manifest.json").is_file():
        return path
    for parent in (path / "checkpoints", path):
        pointer = parent / "latest"
        if pointer.is_file():
            return parent / pointer.read_text(encoding="utf-8").strip()
    raise RunError(f"{path}: no checkpoint here (expected a run directory or one of its checkpoints/step-... )")


def _delete(directory: Path) -> None:
    """Rename first, so that a half-deleted checkpoint never carries a checkpoint's name."""
    doomed = directory.parent / f".deleting-{directory.name}"
    os.rename(directory, doomed)
    shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Have what this machine wrote to a file, or the names in a directory, survive its power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
