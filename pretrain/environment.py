"""Who is this process? RANK > OMPI > SLURM > single, as one function of the environment. No torch."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.errors import RunError
from pretrain.nodelist import parse_nodelist

DEFAULT_PORT = 29_500
TOLD_BY_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Names of what torchrun and deepspeed say about a process."""
PREFIX_OF_MPI = "OMPI_COMM_WORLD_"
"""Begin of the names of what mpirun says about it."""
_FIRST_SLURM_PORT, _NUM_SLURM_PORTS = 15_000, 15_000  # below 32768, from where systems take ports for clients


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
    """Whose variables said so: ``env`` (RANK: torchrun, deepspeed), ``mpi``, ``slurm`` or ``single``."""


def read_environment(env: Mapping[str, str]) -> Processes:
    """What the launcher said.

    Pure, but for a single process, which takes a port of this machine that is free now. mpirun inside a SLURM job
    goes before SLURM: there every rank has SLURM_PROCID 0. A shell inside an allocation has SLURM variables too, but
    is no task of a step of several, so what is typed there is a single process.

    Raises:
        RunError: if variables of one launcher are incomplete or contradict each other; names the variable.
    """
    if "RANK" in env:
        return _checked(_from_env(env))
    if "OMPI_COMM_WORLD_RANK" in env:
        return _checked(_from_mpi(env))
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and _slurm_tasks(env) > 1:
        return _checked(_from_slurm(env))
    return Processes(0, 1, 0, 1, "127.0.0.1", free_port(), "single")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list: ``gpu003`` of ``gpu[003-005,9],login1``.

    Raises:
        RunError: if there is none.
    """
    try:
        return parse_nodelist(nodelist)[0]
    except RunError as error:
        raise RunError(f"SLURM_STEP_NODELIST: {error}; export MASTER_ADDR=HOST_OF_RANK_0") from error


def slurm_port(env: Mapping[str, str]) -> int:
    """A port for rank 0 that all nodes of a SLURM job know: another one for each job, and after each requeue.

    Raises:
        RunError: outside a job.
    """
    attempt = 8 * _number(env, "SLURM_JOB_ID") + _number(env, "SLURM_RESTART_COUNT", 0)
    return _FIRST_SLURM_PORT + attempt % _NUM_SLURM_PORTS


def tasks_of_node(tasks_per_node: str, node: int) -> int:
    """Tasks on the ``node``-th machine of a SLURM step: of ``4(x2),3`` the machines 0 and 1 have 4, 2 has 3.

    Raises:
        RunError: if the text is something else, or too short.
    """
    counts: list[int] = []
    for item in tasks_per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item.strip())
        if match is None:
            raise RunError(
                f"SLURM_STEP_TASKS_PER_NODE is {tasks_per_node!r}, not like 4(x2),3; start the run with srun"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    if not 0 <= node < len(counts):
        raise RunError(
            f"SLURM_NODEID is {node}, but SLURM_STEP_TASKS_PER_NODE {tasks_per_node!r} has {len(counts)} nodes"
        )
    return counts[node]


def _from_env(env: Mapping[str, str]) -> Processes:
    world_size = _number(env, "WORLD_SIZE")
    alone = world_size == 1  # needs nobody's address
    size_name = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in env else "LOCAL_SIZE"
    return Processes(
        rank=_number(env, "RANK"),
        world_size=world_size,
        local_rank=_number(env, "LOCAL_RANK", 0 if alone else None),
        local_size=_number(env, size_name, world_size),
        master_addr=_text(env, "MASTER_ADDR", "127.0.0.1" if alone else None),
        master_port=free_port() if alone and "MASTER_PORT" not in env else _number(env, "MASTER_PORT", DEFAULT_PORT),
        launcher="env",
    )


def _from_mpi(env: Mapping[str, str]) -> Processes:
    world_size = _number(env, "OMPI_COMM_WORLD_SIZE")
    local_size = _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE")
    return Processes(
        rank=_number(env, "OMPI_COMM_WORLD_RANK"),
        world_size=world_size,
        local_rank=_number(env, "OMPI_COMM_WORLD_LOCAL_RANK"),
        local_size=local_size,
        master_addr=_text(env, "MASTER_ADDR", "127.0.0.1" if local_size == world_size else None),
        master_port=_number(env, "MASTER_PORT", DEFAULT_PORT),
        launcher="mpi",
    )


def _slurm_tasks(env: Mapping[str, str]) -> int:
    """Tasks of this step. SLURM_NTASKS can be the whole allocation's, so it only stands in."""
    return _number(env, "SLURM_STEP_NUM_TASKS", _number(env, "SLURM_NTASKS", 1))


def _from_slurm(env: Mapping[str, str]) -> Processes:
    nodes = env.get("SLURM_STEP_NODELIST") or _text(env, "SLURM_JOB_NODELIST")
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE") or _text(env, "SLURM_TASKS_PER_NODE")
    return Processes(
        rank=_number(env, "SLURM_PROCID"),
        world_size=_slurm_tasks(env),
        local_rank=_number(env, "SLURM_LOCALID"),
        local_size=tasks_of_node(tasks, _number(env, "SLURM_NODEID")),
        master_addr=env.get("MASTER_ADDR") or first_host(nodes),
        master_port=_number(env, "MASTER_PORT", slurm_port(env)),
        launcher="slurm",
    )


_RANK_AND_SIZE = {
    "env": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
}


def _checked(processes: Processes) -> Processes:
    rank, size, local_rank = _RANK_AND_SIZE[processes.launcher]
    fix = f"start the run with one launcher, or unset {rank} to run alone"
    if not 0 <= processes.rank < processes.world_size:
        raise RunError(f"{rank} is {processes.rank}, but {size} is {processes.world_size}: {fix}")
    if processes.local_size > processes.world_size:
        raise RunError(f"{processes.local_size} processes on this machine, but {size} is {processes.world_size}: {fix}")
    if not 0 <= processes.local_rank < processes.local_size:
        raise RunError(f"{local_rank} is {processes.local_rank}, but {processes.local_size} processes are here: {fix}")
    if not 0 < processes.master_port < 65_536:
        raise RunError(f"MASTER_PORT is {processes.master_port}, not a port (1 to 65535)")
    return processes


def _text(env: Mapping[str, str], name: str, default: str | None = None) -> str:
    text = env.get(name) or default
    if text is None:
        raise RunError(
            f"{name} is not set in the environment; export it, or start the run with deepspeed, torchrun or srun"
        )
    return text


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = _text(env, name, None if default is None else str(default))
    try:
        return int(text)
    except ValueError as error:
        raise RunError(f"{name} is {text!r}, not a number") from error
