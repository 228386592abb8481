"""One run at a time in a run directory. No torch."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import RunError


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Keep other runs of this machine out of a run directory: they would delete each other's checkpoints.

    The lock belongs to the process: data workers do not inherit it, and a killed run leaves none behind. One that
    another machine holds is not believed, for that machine may have died. A file system without locks does without.

    Raises:
        RunError: if a run is there.
    """
    path = run_dir / ".lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            host, _, process = os.pread(lock, 1000, 0).decode().strip().partition(" ")
            if host == socket.gethostname():
                raise RunError(
                    f"{run_dir}: process {process} is training here; stop it first (SIGTERM makes it save), or choose "
                    "another --run-dir"
                ) from None
        except OSError:
            pass
        else:
            _sign(path, lock)
        yield
    finally:
        os.close(lock)


def _sign(path: Path, lock: int) -> None:
    """Say who has the lock."""
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
