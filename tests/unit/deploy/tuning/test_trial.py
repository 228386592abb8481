"""How a trial is ended, and what its end means."""

import signal
import subprocess
import time

import psutil
import pytest

from deploy.tuning.trial import Measurement, end, problem_of


def test_everything_in_the_session_is_killed() -> None:
    """A launcher, its child, and one that ignores SIGTERM."""
    script = "sleep 60 & trap '' TERM; sh -c \"trap '' TERM; sleep 60\" & wait"
    process = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    deadline = time.monotonic() + 10
    while len(below := psutil.Process(process.pid).children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    end(process)
    assert len(below) >= 2 and process.returncode == -signal.SIGKILL
    _, alive = psutil.wait_procs(below, timeout=10)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


def test_an_ended_trial_can_be_ended_again() -> None:
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    end(process)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("said", "status", "expected"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", 1, "out of memory"),
        ("DefaultCPUAllocator: can't allocate memory: you tried", 1, "out of memory"),
        ("", -signal.SIGKILL, "out of memory"),  # the system's own killer says nothing
        ("starting\nd2v: error: data.path: is empty\nbye", 2, "d2v: error: data.path: is empty"),
        ("working", None, "too slow: not done after 30 s"),
        ("silence", 3, "ended with status 3; see its trial.log"),
    ],
)
def test_what_an_end_without_steps_means(said: str, status: int | None, expected: str) -> None:
    assert problem_of(said, status, 30.0) == expected


def test_error_of_a_median() -> None:
    """Of normal numbers 1.2533 standard deviations over the root of their number; here deviations of 1 / 0.6745."""
    steps = tuple(float(value) for value in range(-50, 51))
    found = Measurement(steps)
    assert found.median == 0
    assert found.error == pytest.approx(1.2533 * 51 / 1.349 / 101**0.5, rel=1e-3)
    assert Measurement((2.0,)).error == 2.0
