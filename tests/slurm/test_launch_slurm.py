"""``d2v launch slurm`` on a real SLURM of two nodes: submitted, stopped, requeued, resumed, done, bit for bit."""

import sys
from pathlib import Path

import pytest

from pretrain.checkpoint.progress import newest_checkpoint, step_of
from tests.distributed.launch import REPOSITORY, train_records
from tests.slurm.cluster import Cluster

STEPS = 40
RUN = [
    f"--training.max-steps={STEPS}",
    "--training.global-batch-size=8",
    "--schedule.warmup-steps=3",
    "--logging.every-steps=1",
    "--logging.tensorboard=false",
    "--checkpoint.every-steps=10",
]


def submit(cluster: Cluster, shards: Path, run_dir: Path, *extra: str) -> str:
    """Submit the run on two nodes of two tasks; the job's id."""
    command = [sys.executable, "-m", "deploy.cli", "launch", "slurm", "image-tiny", "--nodes=2", "--gpus-per-node=2"]
    command += [f"--run-dir={run_dir}", f"--data.path={shards}", *RUN, *extra]
    variables = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return cluster.run(*command, timeout=30, **variables).split()[1].rstrip(";")


def has_step(run_dir: Path, step: int) -> bool:
    return (run_dir / "metrics.jsonl").exists() and any(one["step"] >= step for one in train_records(run_dir))


def log(run_dir: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in run_dir.glob("slurm-*.out"))


def finish(cluster: Cluster, job: str, run_dir: Path, seconds: float = 90) -> None:
    """Until the job has left the queue with DONE."""
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    cluster.wait_for(f"the end of job {job}", lambda: cluster.job(job)["JobState"] in ended, seconds)
    assert cluster.job(job)["JobState"] == "COMPLETED", log(run_dir)
    assert (run_dir / "DONE").exists() and not (run_dir / "RESUME").exists()


def losses(run_dir: Path) -> dict[int, float]:
    """By step; of a step that was done again the later one counts."""
    return {record["step"]: record["loss"] for record in train_records(run_dir)}


@pytest.fixture(scope="module")
def unbroken(cluster: Cluster, digit_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("slurm") / "unbroken"
    finish(cluster, submit(cluster, digit_shards, run_dir), run_dir)
    return run_dir


def test_stopped_run_requeues_itself_and_ends_as_if_nothing_had_happened(
    cluster: Cluster, digit_shards: Path, unbroken: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "stopped"
    job = submit(cluster, digit_shards, run_dir)
    cluster.wait_for("step 3", lambda: has_step(run_dir, 3), 60)
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@300 does before the time limit
    cluster.wait_for("the requeue", lambda: cluster.job(job)["Restarts"] == "1", 60)
    newest = newest_checkpoint(run_dir)
    assert newest is not None and 3 <= step_of(newest) < STEPS, log(run_dir)
    finish(cluster, job, run_dir)
    assert losses(run_dir) == losses(unbroken)


def test_killed_node(cluster: Cluster, digit_shards: Path, unbroken: Path, tmp_path: Path) -> None:
    """SLURM notices, requeues by itself, and the run goes on from its last checkpoint once the node is back."""
    run_dir = tmp_path / "killed"
    job = submit(cluster, digit_shards, run_dir)
    cluster.wait_for("step 13", lambda: has_step(run_dir, 13), 60)
    cluster.kill_node("n1")
    cluster.wait_for("the requeue", lambda: cluster.job(job)["Restarts"] == "1", 60)
    cluster.start_node("n1")
    assert losses(run_dir).keys() < losses(unbroken).keys(), "killed too late to prove anything"
    finish(cluster, job, run_dir)
    assert losses(run_dir) == losses(unbroken)
