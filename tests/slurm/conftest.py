"""One cluster for all tests here, and the run that was never broken; where there can be none, they are skipped."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing
from tests.slurm.runs import finish, submit


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


@pytest.fixture(scope="session")
def unbroken(cluster: Cluster, digit_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, one per node."""
    run_dir = tmp_path_factory.mktemp("slurm") / "unbroken"
    finish(cluster, submit(cluster, digit_shards, run_dir, gpus_per_node=1), run_dir)
    return run_dir


@pytest.fixture(scope="session")
def unbroken_of_four(cluster: Cluster, digit_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four ranks, two per node."""
    run_dir = tmp_path_factory.mktemp("slurm") / "unbroken_of_four"
    finish(cluster, submit(cluster, digit_shards, run_dir, gpus_per_node=2), run_dir)
    return run_dir
