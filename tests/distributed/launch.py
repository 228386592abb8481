"""Start a test's worker module as N real processes over gloo, and give back what each printed."""

import json
import multiprocessing
import os
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from pretrain.environment import free_port
from tests.distributed.rank import REPOSITORY, run_module

_FORKS = not torch.cuda.is_available()
"""Whether ranks begin as copies of one process that has imported everything, which saves each of them 4 to 8 s of CPU
time; CUDA does not outlive a fork."""
_PROCESSES = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
_PROCESSES.set_forkserver_preload(["tests.distributed.preloaded"])


def rank_environment(rank: int, num_processes: int, port: int) -> dict[str, str]:
    """What torchrun would set for one rank of a one-machine run, with one thread per process."""
    return os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }


def run_ranks(module: str, arguments: list[str], num_processes: int, timeout_seconds: int = 300) -> list[str]:
    """Run what ``python -m module ARGUMENTS`` would as ``num_processes`` ranks.

    Returns:
        Standard output of every rank.
    Raises:
        AssertionError: if a rank fails, with its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = start_ranks(module, arguments, num_processes, Path(folder))
        try:
            for process in ranks:
                process.join(timeout_seconds)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        printed, errors = (
            [Path(folder, f"{rank}.{kind}").read_text(encoding="utf-8") for rank in range(num_processes)]
            for kind in ("out", "err")
        )
    for rank, (process, out, err) in enumerate(zip(ranks, printed, errors, strict=True)):
        assert process.exitcode == 0, f"rank {rank} exited {process.exitcode}\n{out}\n{err}"
    return printed


def start_ranks(module: str, arguments: list[str], num_processes: int, folder: Path) -> list[BaseProcess]:
    """As ``run_ranks`` does, in the background: what rank R prints goes to R.out and R.err in a folder."""
    port = free_port()
    ranks = []
    for rank in range(num_processes):
        given = (module, arguments, rank_environment(rank, num_processes, port), folder / f"{rank}.out")
        ranks.append(_PROCESSES.Process(target=run_module, args=given))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # read when torch is imported; threads do not outlive a fork either
            ranks[-1].start()
    return ranks


def train_records(run_dir: Path) -> list[dict]:
    """The ``train`` lines of a run's metrics.jsonl."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]
