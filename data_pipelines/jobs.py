"""Independent jobs in worker processes, with progress."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

from data_pipelines.errors import DataError

Result = TypeVar("Result")
Advance = Callable[[int], None]
"""Called by a job with the amount of work it has just done."""
Report = Callable[[int], None]
"""Called in the main process with the amount of work done so far by all jobs."""
_POLL_SECONDS = 0.1

_worker: "tuple[Callable[[int, Advance], Any], Advance]"
"""Of a worker process: what it runs, inherited by the fork instead of pickled for every job."""


def run_jobs(
    function: Callable[[int, Advance], Result], num_jobs: int, *, num_workers: int, report: Report
) -> list[Result]:
    """Run ``function(job, advance)`` for every job number.

    Args:
        function: may raise DataError, which ends everything.
        num_jobs: jobs are numbered from 0.
        num_workers: processes; 1 runs the jobs here.
        report: receives the sum of all ``advance`` calls.
    Returns:
        The results in the order of the jobs.
    Raises:
        DataError: the first that a job raised, or that a worker process died.
    """
    num_workers = min(num_workers, num_jobs)
    if num_workers <= 1:
        return _run_here(function, num_jobs, report)
    context = get_context("fork")
    done = context.Value("q", 0)

    def advance(amount: int) -> None:
        with done.get_lock():
            done.value += amount

    with ProcessPoolExecutor(num_workers, context, initializer=_start, initargs=(function, advance)) as pool:
        futures = [pool.submit(_run, job) for job in range(num_jobs)]
        try:
            pending: set[Future[Result]] = set(futures)
            while pending:
                finished, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                report(done.value)
        except BrokenProcessPool as error:
            raise DataError("a worker process died (out of memory?); use fewer --workers") from error
        finally:
            pool.shutdown(cancel_futures=True)
        return [future.result() for future in futures]


def _run_here(function: Callable[[int, Advance], Result], num_jobs: int, report: Report) -> list[Result]:
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        report(done)

    return [function(job, advance) for job in range(num_jobs)]


def _start(function: Callable[[int, Advance], Any], advance: Advance) -> None:
    global _worker
    _worker = function, advance
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes share the cores; torch may still be imported, or already be
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for jobs for ever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _run(job: int) -> Any:
    function, advance = _worker
    return function(job, advance)
