"""One cluster for all tests here; where there can be none, they are skipped, loudly."""

import warnings
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    problem = missing()
    if problem is not None:
        warnings.warn(f"NO SLURM HERE, so nothing of tests/slurm is tested: {problem}", stacklevel=1)
        pytest.skip(f"no SLURM here: {problem}")
    running = Cluster()
    try:
        yield running
    finally:
        running.stop()
