"""Do all processes of a run come? Counted before anything of the run starts: then it is known who is missing."""

import os
import socket
from datetime import timedelta

import torch.distributed as dist

from pretrain.environment import Processes
from pretrain.errors import RunError


def meet(processes: Processes, timeout_seconds: float) -> dist.Store:
    """Wait until every rank is there.

    Args:
        processes: who this process is; rank 0 listens at the address of the master, unless torchrun's agent does.
        timeout_seconds: how long to wait.
    Returns:
        What the ranks met at; has to live until the process group has been made, which shares its port.
    Raises:
        RunError: if the master cannot be reached, or ranks are missing; says which and how many came.
    """
    place = f"rank {processes.rank} on {socket.gethostname()}"
    master = f"{processes.master_addr}:{processes.master_port}"
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    timeout = timedelta(seconds=timeout_seconds)
    try:
        store = dist.TCPStore(
            processes.master_addr,
            processes.master_port,
            processes.world_size,
            is_master=processes.rank == 0 and not has_agent,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,  # torch's own store of this process then is the same one
        )
    except dist.DistError as error:
        raise RunError(
            f"{place} does not reach the master at {master} within {timeout_seconds:g} s ({_first_line(error)}); "
            "is rank 0 running, does MASTER_ADDR resolve here, does a firewall close the port?"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    ranks = dist.PrefixStore(f"d2v-doctor/{attempt}", store)
    ranks.set(str(processes.rank), place)
    names = [str(rank) for rank in range(processes.world_size)]
    try:
        ranks.wait(names, timeout)
    except dist.DistError as error:
        raise RunError(_who_is_missing(ranks, names, master, timeout_seconds)) from error
    return store


def _who_is_missing(ranks: dist.Store, names: list[str], master: str, timeout_seconds: float) -> str:
    try:
        missing = [name for name in names if not ranks.check([name])]
    except dist.DistError:
        return f"rank 0 gave up and closed {master}; its own message says who is missing"
    came = len(names) - len(missing)
    shown = ", ".join(missing[:8]) + (" and others" if len(missing) > 8 else "")
    return (
        f"{came} of {len(names)} processes came to {master} within {timeout_seconds:g} s, missing: rank {shown}; "
        "did the launcher start them all, and do their machines reach this one?"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
