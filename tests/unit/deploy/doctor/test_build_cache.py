"""Locks of builds: stale ones are named, those of living processes are left alone."""

import os
from pathlib import Path

import pytest

from deploy.doctor.build_cache import stale_locks


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("folder", ["cpu_adam", "py311_cu130/cpu_adam"])
def test_a_lock_without_its_process_is_stale(cache: Path, folder: str) -> None:
    lock = cache / folder / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (0, 0))
    found = stale_locks()
    assert found.level == "warning"
    assert "cpu_adam" in found.detail and "min old" in found.detail
    assert found.fix.endswith(f"rm {lock}")
    lock.unlink()  # as told
    assert stale_locks().level == "ok"


def test_a_lock_of_a_living_process_is_not(cache: Path) -> None:
    lock = cache / "cpu_adam" / "lock"
    lock.parent.mkdir()
    handle = os.open(lock, os.O_CREAT | os.O_EXCL)  # as torch's FileBaton
    try:
        found = stale_locks()
        assert found.level == "ok"
        assert f"process {os.getpid()} builds cpu_adam" in found.detail
    finally:
        os.close(handle)
    assert stale_locks().level == "warning"


def test_what_is_built_is_told(cache: Path) -> None:
    assert "empty" in stale_locks().detail
    (cache / "cpu_adam").mkdir()
    (cache / "cpu_adam" / "cpu_adam.so").touch()
    assert stale_locks().detail == f"{cache}: cpu_adam; no stale lock"
