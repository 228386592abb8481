"""Who is this process? RANK > OMPI > SLURM > single, as one pure function of the environment. No torch."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.errors import RunError

DEFAULT_PORT = 29_500
_SLURM_PORTS = range(20_000, 30_000)


@dataclass(frozen=True)
class Processes:
    """This process among the processes of the run."""

    rank: int
    world_size: int
    local_rank: int
    """Number on its machine: the accelerator to use."""
    local_size: int
    """Processes on its machine."""
    master_addr: str
    """Host of rank 0."""
    master_port: int
    launcher: str
    """Who started it: ``env`` (torchrun, deepspeed), ``mpi``, ``slurm`` or ``single``."""


def read_environment(env: Mapping[str, str]) -> Processes:
    """What the launcher said.

    Raises:
        RunError: if variables of one launcher are incomplete or contradict each other; names the variable.
    """
    if "RANK" in env:
        return _checked(_from_env(env))
    if "OMPI_COMM_WORLD_RANK" in env:
        return _checked(_from_mpi(env))
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and _number(env, "SLURM_NTASKS", 1) > 1:
        return _checked(_from_slurm(env))  # a shell inside an allocation has no step, and is a single process
    return Processes(0, 1, 0, 1, "127.0.0.1", free_port(), "single")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list such as ``gpu[003-005,9],login1``."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?([^,\[\]]*\])?", nodelist)
    if match is None:
        raise RunError(f"SLURM_JOB_NODELIST: cannot find a host in {nodelist!r}")
    return match[1] + (match[2] or "")


def _from_env(env: Mapping[str, str]) -> Processes:
    world_size = _number(env, "WORLD_SIZE")
    alone = world_size == 1
    local_size = next((_number(env, name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in env), None)
    return Processes(
        rank=_number(env, "RANK"),
        world_size=world_size,
        local_rank=_number(env, "LOCAL_RANK", 0 if alone else None),
        local_size=local_size or world_size,
        master_addr=env.get("MASTER_ADDR", "127.0.0.1") if alone else _text(env, "MASTER_ADDR"),
        master_port=_number(env, "MASTER_PORT", free_port() if alone else DEFAULT_PORT),
        launcher="env",
    )


def _from_mpi(env: Mapping[str, str]) -> Processes:
    return Processes(
        rank=_number(env, "OMPI_COMM_WORLD_RANK"),
        world_size=_number(env, "OMPI_COMM_WORLD_SIZE"),
        local_rank=_number(env, "OMPI_COMM_WORLD_LOCAL_RANK"),
        local_size=_number(env, "OMPI_COMM_WORLD_LOCAL_SIZE"),
        master_addr=_text(env, "MASTER_ADDR"),
        master_port=_number(env, "MASTER_PORT", DEFAULT_PORT),
        launcher="mpi",
    )


def _from_slurm(env: Mapping[str, str]) -> Processes:
    job = _number(env, "SLURM_JOB_ID")
    nodes = env.get("SLURM_STEP_NODELIST") or _text(env, "SLURM_JOB_NODELIST")
    tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE") or _text(env, "SLURM_TASKS_PER_NODE"))
    if tasks is None:
        raise RunError("SLURM_TASKS_PER_NODE: not a number of tasks; start the run with srun")
    return Processes(
        rank=_number(env, "SLURM_PROCID"),
        world_size=_number(env, "SLURM_NTASKS"),
        local_rank=_number(env, "SLURM_LOCALID"),
        local_size=int(tasks[0]),
        master_addr=env.get("MASTER_ADDR") or first_host(nodes),
        master_port=_number(env, "MASTER_PORT", _SLURM_PORTS[job % len(_SLURM_PORTS)]),
        launcher="slurm",
    )


def _checked(processes: Processes) -> Processes:
    if not 0 <= processes.rank < processes.world_size:
        raise RunError(
            f"rank {processes.rank} of a world of {processes.world_size} processes ({processes.launcher}): "
            "RANK and WORLD_SIZE contradict each other; unset them or start through a launcher"
        )
    if not 0 <= processes.local_rank < processes.world_size:
        raise RunError(f"LOCAL_RANK {processes.local_rank} does not fit a world of {processes.world_size} processes")
    return processes


def _text(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        raise RunError(f"{name} is not set in the environment; start the run with deepspeed, torchrun or srun")
    return env[name]


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and name not in env:
        return default
    text = _text(env, name)
    try:
        return int(text)
    except ValueError as error:
        raise RunError(f"{name} is {text!r}, not a number") from error
