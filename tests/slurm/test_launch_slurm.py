"""``d2v launch slurm`` on a real SLURM: submitted, stopped, requeued, resumed, done, bit for bit."""

from pathlib import Path

import pytest

from pretrain.checkpoint.progress import newest_checkpoint, step_of
from tests.slurm.cluster import Cluster
from tests.slurm.runs import STEPS, finish, has_step, log, losses, submit


def test_stopped_run_requeues_itself_and_ends_as_if_nothing_had_happened(
    cluster: Cluster, digit_shards: Path, unbroken_of_four: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "stopped"
    job = submit(cluster, digit_shards, run_dir, gpus_per_node=2)
    with pytest.raises(AssertionError, match=f"job {job} of this run is in the queue"):
        submit(cluster, digit_shards, run_dir, gpus_per_node=2)
    cluster.wait_for("step 3", lambda: has_step(run_dir, 3), 120)
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@300 does before the time limit
    cluster.wait_for("the requeue", lambda: cluster.job(job)["Restarts"] == "1", 60)
    newest = newest_checkpoint(run_dir)
    assert newest is not None and 3 <= step_of(newest) < STEPS, log(run_dir)
    finish(cluster, job, run_dir)
    assert losses(run_dir) == losses(unbroken_of_four)
    assert log(run_dir).count(" srun --kill-on-bad-exit=1 --label ") == 2


def test_killed_node(cluster: Cluster, digit_shards: Path, unbroken: Path, tmp_path: Path) -> None:
    """SLURM notices, requeues by itself, and the run goes on from its last checkpoint once the node is back."""
    run_dir = tmp_path / "killed"
    job = submit(cluster, digit_shards, run_dir, gpus_per_node=1)
    cluster.wait_for("step 13", lambda: has_step(run_dir, 13), 120)
    cluster.kill_node("n1")
    cluster.wait_for("the requeue", lambda: cluster.job(job)["Restarts"] == "1", 90)
    cluster.start_node("n1")
    assert losses(run_dir).keys() < losses(unbroken).keys(), "killed too late to prove anything"
    finish(cluster, job, run_dir)
    assert losses(run_dir) == losses(unbroken)


def test_cancelled_run_saves_and_stays_cancelled(cluster: Cluster, digit_shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "cancelled"
    job = submit(cluster, digit_shards, run_dir, gpus_per_node=1)
    cluster.wait_for("step 3", lambda: has_step(run_dir, 3), 120)
    cluster.run("scancel", job)
    cluster.wait_for("the save", (run_dir / "RESUME").exists, 60)
    cluster.wait_for("the end", lambda: cluster.job(job)["JobState"] == "CANCELLED", 60)
    cluster.wait_for("the script's word", lambda: "is not requeued" in log(run_dir), 30)
    newest = newest_checkpoint(run_dir)
    assert newest is not None and 3 <= step_of(newest) < STEPS
    assert cluster.job(job)["Restarts"] == "0"
