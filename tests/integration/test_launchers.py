"""The same short run under ``d2v train`` alone, ``torchrun`` and ``deepspeed``: the same losses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.checkpoint.progress import newest_checkpoint, step_of
from pretrain.environment import free_port
from tests.distributed.launch import REPOSITORY, train_records

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "plain": ([sys.executable, "-m", "deploy.cli"], 1),
    "torchrun": ([str(BIN / "torchrun"), "--nproc-per-node=2", "--master-port={port}", "-m", "deploy.cli"], 2),
    "deepspeed": ([str(BIN / "deepspeed"), "--num_gpus=2", "--master_port={port}", "--module", "deploy.cli"], 2),
}
ARGUMENTS = [
    "--training.max-steps=6",
    "--training.global-batch-size=8",
    "--schedule.warmup-steps=2",
    "--precision.dtype=fp32",
    "--logging.every-steps=1",
    "--logging.tensorboard=false",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digit_shards: Path) -> Path:
    out = tmp_path_factory.mktemp("launchers")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    } | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for name, (command, _) in LAUNCHERS.items():
        port = str(free_port())
        process = subprocess.run(
            [
                *(part.format(port=port) for part in command),
                "train",
                "image-tiny",
                f"--run-dir={out / name}",
                f"--data.path={digit_shards}",
                *ARGUMENTS,
            ],
            env=environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert process.returncode == 0, f"{name}\n{process.stdout}\n{process.stderr}"
    return out


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_same_losses(runs: Path, launcher: str) -> None:
    expected, seen = train_records(runs / "plain"), train_records(runs / launcher)
    assert [record["step"] for record in seen] == [1, 2, 3, 4, 5, 6]
    for before, after in zip(expected, seen, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)


def test_launchers_agree_to_the_bit(runs: Path) -> None:
    losses = [[record["loss"] for record in train_records(runs / name)] for name in ("torchrun", "deepspeed")]
    assert losses[0] == losses[1]


def test_launch_local_saves_on_a_signal(digit_shards: Path, tmp_path: Path) -> None:
    """DeepSpeed's launcher would die of USR1 and leave its ranks behind."""
    command = [sys.executable, "-m", "deploy.cli", "launch", "local", "image-tiny", "--num-processes=2"]
    command += [*ARGUMENTS, f"--run-dir={tmp_path}", f"--data.path={digit_shards}", "--training.max-steps=100000"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=REPOSITORY)
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists() or not train_records(tmp_path):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "RESUME").exists()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and step_of(newest) == train_records(tmp_path)[-1]["step"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_starts_all_ranks(runs: Path, launcher: str) -> None:
    checkpoint = next((runs / launcher / "checkpoints").glob("step-*"))
    assert len(list(checkpoint.glob("rank-*.safetensors"))) == LAUNCHERS[launcher][1]
