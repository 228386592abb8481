"""Checkpoints on disk: written beside their place, checksummed, renamed when whole; the newest whole one found."""

import os
import secrets
import shutil
from pathlib import Path

from pretrain.checkpoint.manifest import Manifest, damage
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

    The order matters: content on disk, then the name, then ``latest``, then deletion; a kill between any
    two leaves a whole checkpoint behind. What is newer than ``after`` was passed over when the run went on: it
    neither counts as kept nor is deleted, for it may be whole and was only unreadable then.

    Args:
        run_dir: of the run.
        writing: from ``begin``.
        step: that of the checkpoint.
        keep: how many stay, this one included.
        after: step of the checkpoint that the run has gone on from, or has written last; None if there is none.
    """
    for path in writing.iterdir():
        _sync(path)
    _sync(writing)
    final = step_directory(run_dir, step)
    for other in complete_checkpoints(run_dir):
        if after is None or other.name > step_directory(run_dir, after).name:
            os.rename(other, other.with_name(f"refused-{other.name}-{secrets.token_hex(4)}"))
    os.rename(writing, final)
    _sync(final.parent)
    pointer = final.parent / ".latest"
    pointer.write_text(final.name + "\n", encoding="utf-8")
    _sync(pointer)
    os.replace(pointer, final.parent / "latest")
    _sync(final.parent)
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


def newest_whole(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files match their checksums, and why newer ones were passed over."""
    refused: list[str] = []
    for candidate in reversed(complete_checkpoints(run_dir)):
        try:
            problem = damage(candidate, Manifest.read(candidate).files)
        except RunError as error:
            problem = str(error)
        if problem is None:
            return candidate, refused
        refused.append(f"{candidate.name} is damaged: {problem}; the next save renames it to refused-...")
    return None, refused


def _delete(directory: Path) -> None:
    """Rename first, so that a half-deleted checkpoint never carries a checkpoint's name."""
    doomed = directory.parent / f".deleting-{directory.name}"
    os.rename(directory, doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
