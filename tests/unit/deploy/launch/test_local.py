"""The command line of DeepSpeed's launcher on one machine."""

import sys

import pytest

from deploy.launch.local import clean_environment, local_command
from pretrain.errors import RunError

FRONT = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level=error", "--master_port=1234"]
BACK = ["--no_local_rank", "--module", "deploy.cli", "train", "image-tiny", "--run-dir", "/runs/a b"]


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, "--num_gpus=2"),
        ("", "--num_gpus=2"),
        ("0,1", "--num_gpus=2"),
        ("0,1,2,3", "--num_gpus=2"),
        ("4,5", "--include=localhost:4,5"),
        ("4, 6,7", "--include=localhost:4,6"),
        ("1,0", "--include=localhost:1,0"),
    ],
)
def test_command(visible: str | None, devices: str) -> None:
    """DeepSpeed takes the first N devices of the machine, whatever is visible, unless they are named."""
    command = local_command(["train", "image-tiny", "--run-dir", "/runs/a b"], 2, port=1234, visible_devices=visible)
    assert command == [*FRONT, devices, *BACK]


@pytest.mark.parametrize(
    ("visible", "words"),
    [("3", ["CUDA_VISIBLE_DEVICES=3 shows 1 devices", "2 processes"]), ("GPU-1,GPU-2", ["by number only", "torchrun"])],
)
def test_devices_that_cannot_be_used(visible: str, words: list[str]) -> None:
    with pytest.raises(RunError) as error:
        local_command(["train"], 2, port=1, visible_devices=visible)
    assert all(word in str(error.value) for word in words)


def test_another_launchers_variables_are_left_out() -> None:
    environment = {"PATH": "/bin", "RANK": "3", "LOCAL_WORLD_SIZE": "4", "SLURM_JOB_ID": "7", "NCCL_DEBUG": "WARN"}
    environment["OMPI_COMM_WORLD_RANK"] = "3"
    assert clean_environment(environment) == {"PATH": "/bin", "SLURM_JOB_ID": "7", "NCCL_DEBUG": "WARN"}
