"""A function of positions, computed in worker processes ahead of its consumer."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from data_pipelines.errors import DataError


class _Failure(NamedTuple):
    """A DataError on its way from a worker process: torch would wrap a raised one into a traceback."""

    message: str


class _Computed(Dataset[Any]):
    """Start position -> batch, or the failure."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self._function = function

    def __getitem__(self, start: int) -> Any:
        try:
            return self._function(start)
        except DataError as error:
            return _Failure(str(error))


def process_loader(
    function: Callable[[int], Any],
    starts: Any,
    *,
    num_workers: int,
    prefetch: int,
    pin_memory: bool = False,
    timeout_seconds: float = 0,
) -> "DataLoader[Any]":
    """``function`` over ``starts`` in worker processes, which start when it is iterated; results in order.

    Args:
        function: start position -> result; may raise DataError. Lists, tuples and dictionaries of arrays would be
            turned into tensors on the way, dataclasses are left as they are.
        starts: any iterable of positions.
        num_workers: processes; 0 computes here.
        prefetch: results that every worker prepares ahead.
        pin_memory: deliver in page-locked memory.
        timeout_seconds: how long the workers may take for a result; 0 for ever.
    """
    has_workers = num_workers > 0
    return DataLoader(
        _Computed(function),
        batch_size=None,  # a start position stands for a whole batch
        sampler=starts,
        num_workers=num_workers,
        prefetch_factor=prefetch if has_workers else None,
        multiprocessing_context="fork" if has_workers else None,  # shares the indices
        worker_init_fn=_leave_signals_to_parent,
        pin_memory=pin_memory,
        timeout=timeout_seconds if has_workers else 0,
        generator=torch.Generator(),  # else it draws from the global one: building a loader would change a run
    )


def results(batches: "DataLoader[Any]") -> Generator[Any, None, None]:
    """What the workers computed. Closing this generator ends the workers.

    Raises:
        DataError: that a function raised, or that a worker process died or hangs.
    """
    iterator = _start_workers(batches)
    try:
        while True:
            try:
                result = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader timed out" in str(error):
                    raise DataError(
                        f"no data worker process has had its batch ready for {batches.timeout:g} s: does the storage "
                        "hang? parallel.timeout_seconds says how long to wait"
                    ) from error
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"a data worker process died ({' '.join(str(error).split())}); "
                    "out of memory? fewer data.num_workers (--workers) or data.prefetch_batches need less"
                ) from error
            if isinstance(result, _Failure):
                raise DataError(result.message)
            yield result
    finally:
        del iterator  # an error's traceback keeps this frame alive, and with it workers that nothing else would end


def _start_workers(batches: "DataLoader[Any]") -> Iterator[Any]:
    """Fork with SIGTERM blocked, so that it is in every thread a worker ever has (see ``_leave_signals_to_parent``)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return iter(batches)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_parent(_: int) -> None:
    """Ctrl-C and batch systems signal the whole process group; the parent decides, and still needs its batches."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    """multiprocessing ends workers with SIGTERM when the interpreter exits; only that one counts."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
