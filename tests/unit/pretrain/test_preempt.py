"""Signals only set a flag, the first one wins; markers say how a run ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain import preempt


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in preempt.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_is_noted_and_nothing_else_happens(name: str) -> None:
    stop = preempt.install()
    assert stop.requested is None
    signal.raise_signal(getattr(signal, name))
    assert stop.requested == name


def test_later_signals_change_nothing() -> None:
    stop = preempt.install()
    for name in ("SIGUSR1", "SIGTERM", "SIGINT", "SIGINT"):
        signal.raise_signal(getattr(signal, name))
    assert stop.requested == "SIGUSR1"


def test_a_stop_request_by_itself_leaves_handlers_alone() -> None:
    before = [signal.getsignal(number) for number in preempt.SIGNALS]
    assert preempt.StopRequest().requested is None
    assert [signal.getsignal(number) for number in preempt.SIGNALS] == before


def test_train_survives_a_signal_during_its_heavy_imports(tmp_path: Path) -> None:
    """USR1's default action kills; handlers must be there before torch is even looked for."""
    (tmp_path / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGUSR1); print('survived')")
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from pretrain import preempt
stop = preempt.install()
assert "torch" not in sys.modules
import torch
print(stop.requested)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert (result.returncode, result.stdout.split()) == (0, ["survived", "SIGUSR1"]), result.stderr


def markers(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


def test_markers_exclude_each_other(tmp_path: Path) -> None:
    preempt.mark(tmp_path, done=False)
    assert markers(tmp_path) == ["RESUME"]
    preempt.mark(tmp_path, done=True)
    assert markers(tmp_path) == ["DONE"]
    preempt.mark(tmp_path, done=True)
    assert markers(tmp_path) == ["DONE"]
    preempt.mark(tmp_path, done=False)
    assert markers(tmp_path) == ["RESUME"]


def test_a_kill_while_marking_never_leaves_a_run_without_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preempt.mark(tmp_path, done=False)

    def killed(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Path, "unlink", killed)
        preempt.mark(tmp_path, done=True)
    assert "DONE" in markers(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, "replace", killed)
        preempt.mark(tmp_path, done=True)
    assert {"DONE", "RESUME"} & set(markers(tmp_path))


def test_a_failure_is_marked_with_its_reason(tmp_path: Path) -> None:
    preempt.mark_failed(tmp_path, "first")
    preempt.mark_failed(tmp_path, "second")
    assert markers(tmp_path) == ["FAILED"]
    assert (tmp_path / "FAILED").read_text() == "second\n"
