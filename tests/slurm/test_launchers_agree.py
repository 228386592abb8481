"""The run of ``d2v launch slurm`` under every other launcher: the same losses."""

from pathlib import Path

import pytest

from pretrain.environment import free_port
from tests.slurm.cluster import Cluster
from tests.slurm.runs import D2V, STEPS, VARIABLES, arguments, losses

SRUN = ("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=2")
HOSTFILE = (*D2V, "launch", "hostfile")
LAUNCHERS = {
    "torchrun": ("torchrun", "--nproc-per-node=2", "--master-port={port}", "-m", "deploy.cli", "train"),
    "deepspeed with a hostfile": (*HOSTFILE, "--hosts=localhost", "--gpus-per-node=2", "--master-port={port}"),
    "deepspeed --no_ssh under srun": (*SRUN, "--kill-on-bad-exit=1", *HOSTFILE, "--no-ssh", "--gpus-per-node=1"),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_same_losses(cluster: Cluster, digit_shards: Path, unbroken: Path, tmp_path: Path, name: str) -> None:
    run_dir, port = tmp_path / "run", str(free_port())
    command = [word.format(port=port) for word in LAUNCHERS[name]]
    cluster.run(*command, *arguments(digit_shards, run_dir), timeout=150, **VARIABLES)
    expected, seen = losses(unbroken), losses(run_dir)
    assert list(seen) == list(range(1, STEPS + 1))
    for step, loss in seen.items():
        assert loss == pytest.approx(expected[step], rel=1e-5)
