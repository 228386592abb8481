"""The run that all tests here start, in one way or another, on two nodes."""

import os
import sys
from pathlib import Path

from tests.distributed.launch import REPOSITORY, train_records
from tests.slurm.cluster import Cluster

STEPS = 30
OPTIONS = (
    f"--training.max-steps={STEPS}",
    "--training.global-batch-size=8",
    "--schedule.warmup-steps=3",
    "--precision.dtype=fp32",
    "--logging.every-steps=1",
    "--logging.tensorboard=false",
    "--checkpoint.every-steps=10",
)
D2V = (sys.executable, "-m", "deploy.cli")
VARIABLES = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(REPOSITORY),
    "OMP_NUM_THREADS": "1",
}
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def arguments(shards: Path, run_dir: Path) -> list[str]:
    """Of ``d2v train`` and of every ``d2v launch``."""
    return ["image-tiny", f"--run-dir={run_dir}", f"--data.path={shards}", *OPTIONS]


def submit(cluster: Cluster, shards: Path, run_dir: Path, *, gpus_per_node: int) -> str:
    """Submit the run; the job's id."""
    layout = ("--nodes=2", f"--gpus-per-node={gpus_per_node}")
    command = [*D2V, "launch", "slurm", *arguments(shards, run_dir), *layout]
    return cluster.run(*command, timeout=60, **VARIABLES).split()[1].rstrip(";")


def finish(cluster: Cluster, job: str, run_dir: Path) -> None:
    """Until the job has left the queue with DONE."""
    cluster.wait_for(f"the end of job {job}", lambda: cluster.job(job)["JobState"] in _ENDED, 150)
    assert cluster.job(job)["JobState"] == "COMPLETED", log(run_dir)
    assert (run_dir / "DONE").exists() and not (run_dir / "RESUME").exists()


def has_step(run_dir: Path, step: int) -> bool:
    """Whether the run has logged a step."""
    return (run_dir / "metrics.jsonl").exists() and any(one["step"] >= step for one in train_records(run_dir))


def log(run_dir: Path) -> str:
    """What the job printed."""
    return "\n".join(path.read_text(encoding="utf-8") for path in run_dir.glob("slurm-*.out"))


def losses(run_dir: Path) -> dict[int, float]:
    """By step; of a step that was done again the later one counts."""
    return {record["step"]: record["loss"] for record in train_records(run_dir)}
