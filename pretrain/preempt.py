"""Being asked to stop: signals set a flag, the trainer acts on it at the next step. No torch."""

import os
import secrets
import signal
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        """Nothing asked yet."""
        self.requested: str | None = None
        """Name of the first signal. Later ones change nothing: the save that follows must not be cut off."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.requested = self.requested or signal.Signals(number).name


def install() -> StopRequest:
    """Catch Ctrl-C, SIGTERM, and SIGUSR1 and SIGUSR2 (SLURM's early warning, as sites choose) from now on."""
    stop = StopRequest()
    for number in SIGNALS:
        signal.signal(number, stop.receive)
    return stop


def mark(run_dir: Path, *, done: bool) -> None:
    """Leave RUN/DONE, or RUN/RESUME where the run can go on, for whoever decides about a restart.

    The new marker is there before the old one goes: a kill in between leaves both, never neither.
    """
    made, other = ("DONE", "RESUME") if done else ("RESUME", "DONE")
    temporary = run_dir / f".{made}"
    temporary.touch()
    os.replace(temporary, run_dir / made)
    (run_dir / other).unlink(missing_ok=True)


def mark_failed(run_dir: Path, reason: str) -> None:
    """Leave RUN/FAILED: what ended the run would end it again, so a restart is of no use."""
    temporary = run_dir / f".FAILED-{secrets.token_hex(4)}"  # any rank may be the one
    temporary.write_text(reason + "\n", encoding="utf-8")
    os.replace(temporary, run_dir / "FAILED")


def unmark(run_dir: Path) -> None:
    """Remove both markers when a run starts or goes on: a crash must not leave an old one behind."""
    for name in ("DONE", "RESUME"):
        (run_dir / name).unlink(missing_ok=True)
