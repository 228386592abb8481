"""``d2v launch hostfile``: DeepSpeed's hostfile, and ``deepspeed`` over ssh or on every node alike. No torch."""

import argparse
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.arguments import port, positive_int
from deploy.launch.local import PROGRAM, start
from deploy.launch.nodes import address_of, expand_nodelist
from deploy.launch.prepare import launch_arguments, prepare, shown
from deploy.launch.reach import check_reachable
from pretrain.environment import DEFAULT_PORT, free_port, slurm_port
from pretrain.errors import RunError

_DESCRIPTION = """\
Run a recipe on several machines through DeepSpeed's launcher: over ssh and pdsh from one of them, or, where there is
no ssh between machines, with --no-ssh on each of them alike (in a SLURM job: srun --ntasks-per-node=1).
Every field of the configuration can be set with --section.field VALUE, as for d2v train."""


def main(argv: list[str]) -> int:
    """Run ``d2v launch hostfile``.

    Returns:
        The launcher's exit status; 1 if it says 0 though the run neither finished nor was saved.
    Raises:
        RunError, ConfigError, DataError: for bad input.
    """
    options, overrides = parser().parse_known_args(argv)
    hosts = find_hosts(options.hosts, os.environ)
    node = node_rank(options.node_rank, len(hosts), os.environ) if options.no_ssh else None
    launch = prepare(options, overrides, len(hosts) * options.gpus_per_node)
    if launch is None:
        return 0
    text = hostfile_text(hosts, options.gpus_per_node)
    name = "hostfile" if node is None else f"hostfile-{node}"  # nodes that start alike write one each
    command = hostfile_command(
        launch.arguments,
        launch.folder / name,
        master_addr=options.master_addr or address_of(hosts[0]),
        master_port=options.master_port or _choose_port(node),
        node_rank=node,
        ssh_port=options.ssh_port,
        only_host=hosts[0] if len(hosts) == 1 else None,
    )
    if options.dry_run:
        print(f"{text}{shown(command)}")
        return 0
    if "--no_ssh" not in command and "--no_ssh_check" not in command:
        check_reachable(hosts, options.ssh_port)
    launch.keep(shown(command), **{name: text})
    return start(command, launch.run_dir, is_first=not node)


def _choose_port(node: int | None) -> int:
    """A port that all machines know: SLURM's job says it, or one machine starts them all; else a fixed one."""
    if "SLURM_JOB_ID" in os.environ:
        return slurm_port(os.environ)
    return free_port() if node is None else DEFAULT_PORT


def find_hosts(named: str | None, environment: Mapping[str, str]) -> list[str]:
    """The machines: those named, or those of the SLURM job.

    Raises:
        RunError: if there are none, or one is there twice.
    """
    nodelist = named or environment.get("SLURM_JOB_NODELIST")
    if not nodelist:
        raise RunError("which machines? give --hosts a,b, or run this inside a SLURM job")
    hosts = expand_nodelist(nodelist)
    wrong = [host for host in hosts if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", host)]  # ssh takes -x for an option
    if wrong:
        raise RunError(f"--hosts: {wrong[0]!r} is not the name of a machine")
    twice = sorted({host for host in hosts if hosts.count(host) > 1})
    if twice:
        raise RunError(f"--hosts: {', '.join(twice)} is there twice; name each machine once")
    return hosts


def node_rank(given: int | None, num_hosts: int, environment: Mapping[str, str]) -> int:
    """Which of the machines this one is.

    Raises:
        RunError: if nobody says so.
    """
    told = environment.get("SLURM_NODEID", "")
    number = given if given is not None else int(told) if told.isdecimal() else -1
    if number < 0:
        raise RunError("--no-ssh: which of the hosts is this? give --node-rank N, or start with srun")
    if number >= num_hosts:
        raise RunError(f"--node-rank: {number}, but there are {num_hosts} hosts")
    return number


def hostfile_text(hosts: Sequence[str], slots: int) -> str:
    """DeepSpeed's hostfile: a line ``HOST slots=N`` per machine."""
    return "".join(f"{host} slots={slots}\n" for host in hosts)


def hostfile_command(
    arguments: Sequence[str],
    hostfile: Path,
    *,
    master_addr: str,
    master_port: int,
    node_rank: int | None = None,
    ssh_port: int | None = None,
    only_host: str | None = None,
) -> list[str]:
    """The command that runs ``d2v ARGUMENTS`` on the machines of a hostfile.

    Args:
        arguments: of ``d2v``.
        hostfile: DeepSpeed trains on this machine alone, with no more than a warning, if it does not exist.
        master_addr: of rank 0; without it DeepSpeed asks the first host over ssh for its first address.
        master_port: free on that machine.
        node_rank: run the processes of this machine only; None: run all, over ssh.
        ssh_port: of the machines.
        only_host: the machine if there is but one: DeepSpeed would take any for this one, after a check over ssh.
    """
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level=error", f"--hostfile={hostfile}"]
    words += [f"--master_addr={master_addr}", f"--master_port={master_port}"]
    if node_rank is not None:
        words += ["--no_ssh", f"--node_rank={node_rank}"]
    elif only_host is not None:
        here = ("localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn())
        words.append("--no_ssh_check" if only_host in here else "--force_multi")
    if ssh_port is not None:
        words.append(f"--ssh_port={ssh_port}")
    return [*words, "--no_local_rank", "--module", PROGRAM, *arguments]


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v launch hostfile``."""
    parser = argparse.ArgumentParser(
        prog="d2v launch hostfile",
        description=_DESCRIPTION,
        parents=[launch_arguments()],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hosts", help="machines, such as a,b or n[0-3] (default: those of the SLURM job)")
    parser.add_argument("--gpus-per-node", type=positive_int, required=True, help="and as many processes")
    parser.add_argument("--no-ssh", action="store_true", help="start only this machine's processes; run this on each")
    parser.add_argument("--node-rank", type=int, help="with --no-ssh: this machine's place (default: SLURM's)")
    parser.add_argument("--master-addr", help="of the first host (default: its name)")
    parser.add_argument(
        "--master-port", type=port, help="free on the first host (default: the job's, a free one, or 29500)"
    )
    parser.add_argument("--ssh-port", type=port, help="of the machines")
    return parser
