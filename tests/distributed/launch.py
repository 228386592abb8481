"""Start a test's worker module as N real processes over gloo, and give back what each printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pretrain.environment import free_port

REPOSITORY = Path(__file__).resolve().parents[2]


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
    """Run ``python -m module ARGUMENTS`` as ``num_processes`` ranks.

    Returns:
        Standard output of every rank.
    Raises:
        AssertionError: if a rank fails, with its output.
    """
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=rank_environment(rank, num_processes, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for rank in range(num_processes)
    ]
    try:
        outputs = [process.communicate(timeout=timeout_seconds) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for rank, (process, (out, err)) in enumerate(zip(ranks, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank} exited {process.returncode}\n{out}\n{err}"
    return [out for out, _ in outputs]


def train_records(run_dir: Path) -> list[dict]:
    """The ``train`` lines of a run's metrics.jsonl."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]
