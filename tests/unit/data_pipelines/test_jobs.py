import os
import signal

import pytest

from data_pipelines.errors import DataError
from data_pipelines.jobs import Advance, run_jobs


def square(job: int, advance: Advance) -> int:
    for _ in range(job):
        advance(2)
    return job**2


@pytest.mark.parametrize("num_workers", [1, 3, 50])
def test_results_come_in_order_with_progress(num_workers: int) -> None:
    reports: list[int] = []
    assert run_jobs(square, 20, num_workers=num_workers, report=reports.append) == [job**2 for job in range(20)]
    assert reports == sorted(reports)
    assert reports[-1] == 2 * sum(range(20))


def test_no_jobs_are_no_work() -> None:
    assert run_jobs(square, 0, num_workers=4, report=print) == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_failure_ends_everything(num_workers: int) -> None:
    def fail(job: int, advance: Advance) -> int:
        if job == 2:
            raise DataError(f"job {job} has bad input")
        return job

    with pytest.raises(DataError, match="^job 2 has bad input$"):
        run_jobs(fail, 30, num_workers=num_workers, report=lambda done: None)


def test_a_killed_worker_is_one_line() -> None:
    def die(job: int, advance: Advance) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return job

    with pytest.raises(DataError, match="a worker process died"):
        run_jobs(die, 4, num_workers=2, report=lambda done: None)
