"""What this process is doing, so that a run whose processes wait for each other says who, where and for what."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

from pretrain.errors import RunError

_OF_A_GROUP = ("Timed out", "timed out", "gloo", "Connection", "NCCL")
"""Words in errors of collectives, which are plain RuntimeErrors over gloo."""


class Watch:
    """Names the phase that a process is in when a collective fails, and when it lasts too long.

    Collectives end themselves after the time limit of their group. Over gloo that raises in the waiting thread; NCCL
    aborts the process from a thread of its own, which is why a thread here reports shortly before.

    Attributes:
        timeout_seconds: the time limit of collectives.
    """

    def __init__(self, place: str, timeout_seconds: float) -> None:
        """Args: who this process is; the time limit of collectives."""
        self._place = place
        self.timeout_seconds = timeout_seconds
        self._phases: list[tuple[str, float]] = []
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, this process does ``name``; phases may lie in phases.

        Raises:
            RunError: instead of the error of a collective, naming process and phase.
        """
        self._phases.append((name, time.monotonic()))
        try:
            yield
        except RuntimeError as error:
            if not _is_of_a_group(error):
                error.add_note(f"{self._place}, while {name}")
                raise
            raise RunError(f"{self._place}: {name} failed, other processes may have ended or hang: {error}") from error
        finally:
            self._phases.pop()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _run(self) -> None:
        reported = None
        while not self._closed.wait(min(self.timeout_seconds / 20, 10.0)):
            phases = self._phases[-1:]
            if not phases or phases[0] == reported:
                continue
            name, since = phases[0]
            waited = time.monotonic() - since
            if waited > 0.9 * self.timeout_seconds:
                print(f"{self._place}: {name} for {waited:.0f} s, giving up soon", file=sys.stderr, flush=True)
                reported = phases[0]


def _is_of_a_group(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in _OF_A_GROUP)
