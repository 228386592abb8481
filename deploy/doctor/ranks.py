"""What the processes of a run say about themselves, and what is wrong with it together. No torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.doctor.findings import Finding

MAX_SKEW_SECONDS = 2.0
"""Between hosts: times in logs and the ages of files would mislead, and from 300 s on SLURM's munge refuses."""


@dataclass(frozen=True)
class Rank:
    """One process."""

    rank: int
    host: str
    local_rank: int
    local_size: int
    launcher: str
    device: str
    """For people."""
    device_id: str
    """The same for the same GPU on the same host; empty for a CPU, which may be shared."""
    versions: dict[str, str]
    """Of Python and packages."""
    slurm_tasks: int | None = None
    """SLURM_NTASKS, if there is an allocation."""
    slurm_step_tasks: int | None = None
    """SLURM_STEP_NUM_TASKS, if this is a task of a step."""


def table(ranks: Sequence[Rank]) -> list[str]:
    """One line per rank under a heading."""
    heads = ("rank", "host", "local", "launcher", "device")
    rows = [
        (str(rank.rank), rank.host, f"{rank.local_rank} of {rank.local_size}", rank.launcher, rank.device)
        for rank in ranks
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows))
    return [line.rstrip() for line in lines]


def judge_devices(ranks: Sequence[Rank]) -> Finding:
    """No GPU may serve two ranks: NCCL refuses that, or hangs."""
    counts = Counter((rank.host, rank.device_id) for rank in ranks if rank.device_id)
    for (host, device_id), count in counts.items():
        if count > 1:
            who = [str(rank.rank) for rank in ranks if (rank.host, rank.device_id) == (host, device_id)]
            return Finding(
                "error",
                f"ranks {', '.join(who)} share one GPU of {host} ({device_id})",
                "one process per GPU: srun --gpus-per-node with as many --ntasks-per-node, torchrun --nproc-per-node",
            )
    kinds = {rank.device for rank in ranks}
    if len(kinds) > 1:
        return Finding("warning", f"different devices: {', '.join(sorted(kinds))}; the slowest sets the pace")
    return Finding("ok", f"{len(ranks)} x {kinds.pop()}, none twice" if counts else f"{len(ranks)} x {kinds.pop()}")


def judge_hosts(ranks: Sequence[Rank]) -> Finding:
    """As many ranks on every host as it says, so that none is told another number than there are."""
    counts = Counter(rank.host for rank in ranks)
    wrong = {rank.host: rank.local_size for rank in ranks if rank.local_size != counts[rank.host]}
    if wrong:
        text = ", ".join(f"{host} has {counts[host]}, told {size}" for host, size in wrong.items())
        return Finding("warning", f"ranks per host: {text}", "start every host's ranks with one launcher")
    return Finding(
        "ok", f"{len(ranks)} of {len(ranks)} came, on {len(counts)} {'host' if len(counts) == 1 else 'hosts'}"
    )


def judge_versions(ranks: Sequence[Rank]) -> Finding:
    """Every rank runs the same code."""
    first, names = ranks[0], sorted(set().union(*(rank.versions for rank in ranks)))
    for name in names:
        for rank in ranks:
            here, there = first.versions.get(name, "missing"), rank.versions.get(name, "missing")
            if here != there:
                return Finding(
                    "error",
                    f"{name} is {here} on {first.host} (rank 0), {there} on {rank.host} (rank {rank.rank})",
                    "one environment on a shared file system, or the same container image everywhere",
                )
    return Finding("ok", ", ".join(f"{name} {first.versions[name]}" for name in names))


def judge_slurm(ranks: Sequence[Rank]) -> Finding:
    """SLURM's number of tasks against the number of processes."""
    first, world_size = ranks[0], len(ranks)
    tasks = first.slurm_tasks
    if tasks is None:
        return Finding("absent", "not in an allocation")
    hosts = len({rank.host for rank in ranks})
    step = first.slurm_step_tasks or 1
    if first.launcher == "slurm" or world_size == 1:
        if tasks != world_size:
            return Finding(
                "error" if world_size == 1 else "warning",
                f"SLURM_NTASKS is {tasks}, but {world_size} processes run",
                "start them with srun, without -n, in a job of one task per GPU",
            )
    elif step not in (1, hosts, world_size):
        return Finding(
            "error",
            f"a step of {step} tasks on {hosts} hosts starts a launcher of {world_size} processes in each task",
            "srun --ntasks-per-node=1 torchrun ..., or srun without torchrun",
        )
    return Finding("ok", f"SLURM_NTASKS {tasks}, {world_size} processes")


def judge_clocks(ranks: Sequence[Rank], offsets: Sequence[float]) -> Finding:
    """Seconds that every rank's clock is ahead of rank 0's."""
    worst = max(range(len(ranks)), key=lambda rank: abs(offsets[rank]))
    if abs(offsets[worst]) > MAX_SKEW_SECONDS:
        return Finding(
            "warning",
            f"the clock of {ranks[worst].host} is {offsets[worst]:+.1f} s from that of {ranks[0].host}",
            "let chrony or ntpd run on all hosts",
        )
    return Finding("ok", f"within {1000 * abs(offsets[worst]):.1f} ms of rank 0's")


def judge_run_dir(run_dir: str, ranks: Sequence[Rank], problems: Sequence[str]) -> Finding:
    """What every rank met when it read rank 0's file; empty if it could."""
    failed = [
        f"rank {rank.rank} on {rank.host}: {problem}" for rank, problem in zip(ranks, problems, strict=True) if problem
    ]
    if failed:
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        fix = "mkdir -p it on a file system that all hosts share, writable for this user"
        return Finding("error", f"{run_dir}: {'; '.join(failed[:3])}{more}", fix)
    return Finding("ok", f"{run_dir}: a file of rank 0 is read by all {len(ranks)} ranks")
