"""Locks in torch's cache of compiled operators: one that a killed process left makes all later ones wait for ever."""

import os
import socket
import time
from pathlib import Path

from deploy.doctor.findings import Finding

_LOCK = "lock"  # torch/utils/file_baton.py: an empty file that its maker holds open while it builds


def cache_folder() -> Path:
    """Where torch builds operators (torch.utils.cpp_extension)."""
    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "torch_extensions")


def stale_locks() -> Finding:
    """Every lock is looked up among the open files of all processes of this machine that may be looked at."""
    folder = cache_folder()
    locks = [path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{_LOCK}")]
    held = {lock: holder_of(lock) for lock in locks}
    stale = [lock for lock, holder in held.items() if holder is None]
    if stale:
        found = "; ".join(f"{lock.parent.name} ({_age(lock)} old)" for lock in stale)
        return Finding(
            "warning",
            f"lock of a build whose process is gone from {socket.gethostname()}: {found}; whoever needs that operator "
            "of DeepSpeed waits for ever (d2v train needs none)",
            f"unless another machine is building it: rm {' '.join(map(str, stale))}",
        )
    built = [path.stem for depth in ("*", "*/*") for path in folder.glob(f"{depth}/*.so")]
    now = [f"process {holder} builds {lock.parent.name}" for lock, holder in held.items()]
    return Finding("ok", f"{folder}: {', '.join([*now, *sorted(built)]) or 'empty'}; no stale lock")


def holder_of(path: Path) -> int | None:
    """The process of this machine that has a file open, as far as it may be seen."""
    target = path.stat()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            handles = list((process / "fd").iterdir())
        except OSError:  # somebody else's, or ended
            continue
        for handle in handles:
            try:
                if os.path.samestat(handle.stat(), target):
                    return int(process.name)
            except OSError:
                continue
    return None


def _age(path: Path) -> str:
    seconds = time.time() - path.stat().st_mtime
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
