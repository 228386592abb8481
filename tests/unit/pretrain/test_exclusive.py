"""Two runs in one directory: the second says so, and a run that was killed stands in nobody's way."""

import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.errors import RunError
from pretrain.exclusive import alone_in

RUN = """\
import os, sys, time
from pathlib import Path
from pretrain.exclusive import alone_in
with alone_in(Path(sys.argv[1])):
    if os.fork() == 0:  # as a data worker
        time.sleep(5)
        os._exit(0)
    print("there", flush=True)
    time.sleep(30)
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """A run in ``tmp_path`` with a data worker, which outlives it."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def test_second_run_is_refused_until_the_first_is_gone(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    try:
        with pytest.raises(RunError, match=f"process {other.pid} is training here"), alone_in(tmp_path):
            pass
    finally:
        other.kill()
    other.wait()
    with alone_in(tmp_path):
        pass


def test_lock_of_another_machine_is_not_believed(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    """It may have died, and its file server not have noticed."""
    (tmp_path / ".lock").write_text("elsewhere 7\n", encoding="utf-8")
    try:
        with alone_in(tmp_path):
            pass
    finally:
        other.kill()
