"""Run a launcher and pass signals on to the ranks, so that they save: DeepSpeed's own would end them. No torch."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType

import psutil

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run ``command`` to its end, in a session of its own: signals of the terminal or of SLURM reach us only.

    Each signal goes on to the ranks below the launcher, which save and end, and then the launcher ends by itself.
    (USR1 would kill the launcher and leave the ranks behind; Ctrl-C would make it kill them after 30 s.) Before there
    are ranks here, and where they are on other machines, SIGTERM ends the launcher. SIGQUIT kills all of it.

    Returns:
        The launcher's exit status, 128 + N if signal N ended it.
    """
    early: list[int] = []
    launcher: subprocess.Popen[bytes] | None = None

    def receive(number: int, frame: FrameType | None) -> None:
        early.append(number) if launcher is None else _pass_on(launcher.pid, number)

    before = {number: signal.signal(number, receive) for number in (*PASSED_ON, signal.SIGQUIT)}
    launcher = subprocess.Popen(command, env=dict(environment), start_new_session=True)
    try:
        for number in early:
            _pass_on(launcher.pid, number)
        status = launcher.wait()
    finally:
        kill_session(launcher.pid)  # ranks that a killed launcher left behind
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _pass_on(launcher: int, number: int) -> None:
    if number == signal.SIGQUIT:
        kill_session(launcher)
        return
    if number == signal.SIGHUP:  # the terminal went away
        number = signal.SIGTERM
    ranks = _ranks(launcher)
    for pid in ranks or [launcher]:
        try:
            os.kill(pid, number if ranks else signal.SIGTERM)
        except ProcessLookupError:
            continue


def _ranks(launcher: int) -> list[int]:
    """Processes below the launcher that have a RANK; not their data workers, which inherit it."""
    found: list[int] = []
    try:
        below = psutil.Process(launcher).children(recursive=True)
    except psutil.NoSuchProcess:
        return found
    ranks = {process.pid for process in below if _has_rank(process)}
    for process in below:
        try:
            if process.pid in ranks and process.ppid() not in ranks:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _has_rank(process: psutil.Process) -> bool:
    try:
        return "RANK" in process.environ()
    except psutil.Error:
        return False


def kill_session(leader: int) -> None:
    """Kill what was started with ``start_new_session``, as far as it is still there: launcher, ranks, data workers."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
