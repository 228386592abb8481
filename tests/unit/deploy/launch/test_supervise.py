"""Signals go to the ranks below a launcher, not to the launcher or to data workers; nothing stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

RANK = """
import json, os, signal, subprocess, sys, time
seen = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: seen.append(signal.Signals(number).name))
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1] + "/ready-" + os.environ["RANK"], "w").write(str(worker.pid))
while not seen:
    time.sleep(0.01)
alive = worker.poll() is None
worker.kill()
json.dump([seen, alive], open(sys.argv[1] + "/seen-" + os.environ["RANK"], "w"))
"""
LAUNCHER = """
import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], env=os.environ | {"RANK": str(rank)})
         for rank in range(2)]
open(sys.argv[1] + "/launcher", "w").write(str(os.getpid()))
sys.exit(max(rank.wait() for rank in ranks))
"""
SUPERVISOR = """
import os, sys
from deploy.launch.supervise import supervise
sys.exit(supervise([sys.executable, "-c", *sys.argv[1:]], os.environ))
"""


@pytest.fixture
def supervised(tmp_path: Path) -> subprocess.Popen[bytes]:
    """Supervisor, launcher, two ranks, each with a worker."""
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, LAUNCHER, str(tmp_path), RANK])
    wait_for(lambda: all((tmp_path / name).exists() for name in ("ready-0", "ready-1", "launcher")))
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_reaches_every_rank_and_nobody_else(
    tmp_path: Path, supervised: subprocess.Popen[bytes], name: str
) -> None:
    supervised.send_signal(getattr(signal, name))
    assert supervised.wait(timeout=20) == 0
    for rank in (0, 1):
        assert json.loads((tmp_path / f"seen-{rank}").read_text()) == [[name], True]


def test_a_lost_terminal_ends_the_run_like_sigterm(tmp_path: Path, supervised: subprocess.Popen[bytes]) -> None:
    supervised.send_signal(signal.SIGHUP)
    assert supervised.wait(timeout=20) == 0
    assert json.loads((tmp_path / "seen-1").read_text()) == [["SIGTERM"], True]


def test_a_killed_launcher_leaves_no_ranks(tmp_path: Path, supervised: subprocess.Popen[bytes]) -> None:
    pids = [int((tmp_path / name).read_text()) for name in ("launcher", "ready-0", "ready-1")]
    os.kill(pids[0], signal.SIGKILL)
    assert supervised.wait(timeout=20) == 128 + signal.SIGKILL
    wait_for(lambda: not any(alive(pid) for pid in pids))


def test_sigquit_kills_all(tmp_path: Path, supervised: subprocess.Popen[bytes]) -> None:
    pids = [int((tmp_path / name).read_text()) for name in ("launcher", "ready-0", "ready-1")]
    supervised.send_signal(signal.SIGQUIT)
    assert supervised.wait(timeout=20) == 128 + signal.SIGKILL
    wait_for(lambda: not any(alive(pid) for pid in pids))


def test_before_there_are_ranks_the_launcher_ends() -> None:
    sleeper = "import sys, time; print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, sleeper], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
