"""N processes on this machine through DeepSpeed's launcher. No torch."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.arguments import positive_int
from deploy.launch.prepare import launch_arguments, prepare, shown
from deploy.launch.supervise import supervise
from pretrain.environment import PREFIX_OF_MPI, TOLD_BY_LAUNCHERS, free_port
from pretrain.errors import RunError
from pretrain.preempt import unmark

PROGRAM = "deploy.cli"
"""Module that every process runs: ``d2v``."""
_DESCRIPTION = """\
Run a recipe as N processes of this machine. Ctrl-C, SIGTERM, USR1 and USR2 reach the processes, which save and end.
Every field of the configuration can be set with --section.field VALUE, as for d2v train."""


def local_command(
    arguments: Sequence[str], num_processes: int, *, port: int, visible_devices: str | None = None
) -> list[str]:
    """The command that runs ``d2v ARGUMENTS`` as ``num_processes`` processes of this machine.

    Args:
        arguments: of ``d2v``, such as ``["train", "image-tiny", "--run-dir", "runs/a"]``.
        num_processes: one per accelerator.
        port: a free one, over which the processes find each other; ``pretrain.environment.free_port`` finds it.
        visible_devices: value of CUDA_VISIBLE_DEVICES. DeepSpeed ignores it where it is told a number of
            processes, so the devices are named to it instead.
    Raises:
        RunError: if fewer devices are visible than processes are wanted, or they have no numbers.
    """
    devices = f"--num_gpus={num_processes}"
    if visible_devices:
        chosen = visible_devices.split(",")[:num_processes]
        if len(chosen) < num_processes:
            raise RunError(
                f"CUDA_VISIBLE_DEVICES={visible_devices} shows {len(chosen)} devices, but {num_processes} processes "
                "need one each; change either"
            )
        if not all(one.strip().isdecimal() for one in chosen):
            raise RunError(
                f"CUDA_VISIBLE_DEVICES={visible_devices}: DeepSpeed's launcher knows devices by number only; "
                f"use numbers, or torchrun --nproc-per-node={num_processes} -m {PROGRAM} train ..."
            )
        if [int(one) for one in chosen] != list(range(num_processes)):
            devices = f"--include=localhost:{','.join(one.strip() for one in chosen)}"
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--log_level=error",
        f"--master_port={port}",
        devices,
        "--no_local_rank",
        "--module",
        PROGRAM,
        *arguments,
    ]


def command_here(arguments: Sequence[str], num_processes: int) -> list[str]:
    """``local_command`` over a port that is free now, and over the devices that this process sees."""
    return local_command(
        arguments, num_processes, port=free_port(), visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES")
    )


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what another launcher may have said about this process."""
    return {
        name: value
        for name, value in environment.items()
        if name not in TOLD_BY_LAUNCHERS and not name.startswith(PREFIX_OF_MPI)
    }


def main(argv: list[str]) -> int:
    """Run ``d2v launch local``.

    Returns:
        The launcher's exit status; 1 if it says 0 though the run neither finished nor was saved.
    Raises:
        RunError, ConfigError, DataError: for bad input.
    """
    options, overrides = parser().parse_known_args(argv)
    launch = prepare(options, overrides, options.num_processes)
    if launch is None:
        return 0
    command = command_here(launch.arguments, options.num_processes)
    if options.dry_run:
        print(shown(command))
        return 0
    launch.keep(shown(command))
    return start(command, launch.run_dir)


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v launch local``."""
    parser = argparse.ArgumentParser(
        prog="d2v launch local", description=_DESCRIPTION, parents=[launch_arguments()], allow_abbrev=False
    )
    parser.add_argument("--num-processes", type=positive_int, required=True, help="one per accelerator")
    return parser


def start(command: Sequence[str], run_dir: Path, *, is_first: bool = True) -> int:
    """Run a launcher to its end.

    Args:
        command: of the launcher.
        run_dir: of the run, whose markers of an earlier attempt go.
        is_first: whether rank 0 is here, which leaves a new marker.
    Returns:
        The launcher's exit status; 1, with a line about it, if that is 0 though there is no marker: launchers say 0
        where a signal killed what they started.
    """
    if is_first:
        unmark(run_dir)
    status = supervise(command, clean_environment(os.environ))
    if status or not is_first or any((run_dir / name).exists() for name in ("DONE", "RESUME")):
        return status
    print(f"d2v: error: {run_dir} is neither DONE nor RESUME: its processes were killed", file=sys.stderr)
    return 1
