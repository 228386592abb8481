"""``d2v doctor --distributed``: all processes of a launcher together. Every rank finds the same; rank 0 tells."""

import contextlib
import os
import platform
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from deploy.doctor import ranks as judge
from deploy.doctor.findings import Finding, as_json, failed, show, summary
from deploy.doctor.machine import installed_version
from deploy.doctor.meeting import meet
from deploy.doctor.ranks import Rank
from pretrain.build import choose_device
from pretrain.environment import Processes, read_environment
from pretrain.parallel.grid import Grid
from pretrain.parallel.groups import ProcessGroups, make_groups
from pretrain.parallel.watch import Watch
from pretrain.parallel.zero import join_processes, leave_processes

_PACKAGES = ("data2vec-scale", "torch", "deepspeed", "megatron-core", "numpy")
_NUM_ELEMENTS = 1 << 22
_NUM_TIMED = 5
_VISIBLE_SECONDS = 5.0
"""Network file systems may show a new file late."""


def examine(run_dir: Path | None, timeout_seconds: int, *, json: bool) -> int:
    """Check the processes of this launcher.

    Args:
        run_dir: that all of them shall see, or None.
        timeout_seconds: for each of coming, joining and checking.
        json: print one JSON object instead of tables.
    Returns:
        0, or 1 if a row is an error; the same on every rank.
    Raises:
        RunError: if processes do not come, or fail in the middle.
    """
    processes = read_environment(os.environ)
    place = f"rank {processes.rank} of {processes.world_size} on {socket.gethostname()}"
    watch = Watch(place, timeout_seconds)
    with _ending_after(3 * timeout_seconds, place), watch.phase("starting"):
        store = meet(processes, timeout_seconds)
        device, backend = choose_device(processes)
        join_processes(processes, backend)
        del store
        groups = make_groups(Grid(processes.world_size, 1), timeout_seconds)
        everyone: list[Rank] = _of_all(groups, _describe(processes, device))
        rows = {"processes": judge.judge_hosts(everyone), "devices": judge.judge_devices(everyone)}
        rows["slurm"] = judge.judge_slurm(everyone)
        rows["versions"] = judge.judge_versions(everyone)
        rows["clocks"] = judge.judge_clocks(everyone, _clock_offsets(groups))
        if run_dir is not None:
            problems = _of_all(groups, _see(run_dir, groups))
            rows["run directory"] = judge.judge_run_dir(str(run_dir), everyone, problems)
        if rows["devices"].level == "error":
            rows["all-reduce"] = Finding("absent", "not tried: it would hang where ranks share a GPU")
        else:
            with watch.phase("an all-reduce over all processes"):
                rows["all-reduce"] = _all_reduce(groups, device, backend)
    watch.close()
    leave_processes()
    if processes.rank == 0:
        _tell(everyone, rows, json=json)
    return int(failed(rows.values()))


def _tell(everyone: list[Rank], rows: dict[str, Finding], *, json: bool) -> None:
    if json:
        print(as_json(rows, ranks=[vars(rank) for rank in everyone]))
        return
    print("\n".join(judge.table(everyone)) + "\n")
    for name, finding in rows.items():
        show(name, finding, sys.stdout)
    print(summary(rows.values()))


def _describe(processes: Processes, device: torch.device) -> Rank:
    name, device_id = f"cpu, {torch.get_num_threads()} threads", ""
    if device.type == "cuda":
        name, device_id = torch.cuda.get_device_name(device), str(torch.cuda.get_device_properties(device).uuid)
    return Rank(
        rank=processes.rank,
        host=socket.gethostname(),
        local_rank=processes.local_rank,
        local_size=processes.local_size,
        launcher=processes.launcher,
        device=name,
        device_id=device_id,
        versions={
            "python": platform.python_version(),
            **{name: installed_version(name) or "missing" for name in _PACKAGES},
        },
        slurm_tasks=_number("SLURM_NTASKS"),
        slurm_step_tasks=_number("SLURM_STEP_NUM_TASKS"),
    )


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None


def _of_all(groups: ProcessGroups, mine: Any) -> list[Any]:
    """What every rank has, by rank."""
    boxes = [None] * groups.world_size
    dist.all_gather_object(boxes, mine, group=groups.control_group)
    return boxes


def _clock_offsets(groups: ProcessGroups) -> list[float]:
    """Seconds that each rank's clock is ahead of rank 0's; a barrier lets ranks go at nearly the same time."""
    times = []
    for _ in range(_NUM_TIMED):
        dist.barrier(group=groups.control_group)
        times.append(time.time())
    rounds = _of_all(groups, times)
    offsets = [[mine - first for mine, first in zip(rank, rounds[0], strict=True)] for rank in rounds]
    return [min(rank, key=abs) for rank in offsets]


def _see(run_dir: Path, groups: ProcessGroups) -> str:
    """Read what rank 0 writes into the run directory; returns why that did not work, or nothing."""
    token = secrets.token_hex(16)
    path, problem = run_dir / f".doctor-{token}", ""
    if groups.rank == 0:
        try:
            path.write_text(token, encoding="utf-8")
        except OSError as error:
            problem = f"cannot write there: {error.strerror}"
    box = [(token, problem)]
    dist.broadcast_object_list(box, src=0, group=groups.control_group)
    token, of_writer = box[0]
    try:
        if not of_writer:
            problem = _read(run_dir / f".doctor-{token}", token)
        dist.barrier(group=groups.control_group)
    finally:
        if groups.rank == 0:
            path.unlink(missing_ok=True)
    return problem


def _read(path: Path, token: str) -> str:
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while True:
        try:
            return "" if path.read_text(encoding="utf-8") == token else "reads something else than rank 0 wrote"
        except OSError as error:
            if time.monotonic() > deadline:
                return f"does not see rank 0's file: {error.strerror}"
        time.sleep(0.2)


def _all_reduce(groups: ProcessGroups, device: torch.device, backend: str) -> Finding:
    """Sum 1, 2, 3, ... over the ranks; then time it."""
    size, num_bytes = groups.world_size, 4 * _NUM_ELEMENTS
    values = torch.full((_NUM_ELEMENTS,), groups.rank + 1.0, device=device)
    dist.all_reduce(values, group=groups.dp_group)
    is_right = bool((values == size * (size + 1) / 2).all())
    started = time.perf_counter()
    for _ in range(_NUM_TIMED):
        dist.all_reduce(values, group=groups.dp_group)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - started) / _NUM_TIMED
    answers: list[tuple[bool, float]] = _of_all(groups, (is_right, seconds))
    wrong = [str(rank) for rank, (right, _) in enumerate(answers) if not right]
    if wrong:
        return Finding(
            "error", f"{backend} gives ranks {', '.join(wrong)} a wrong sum", "NCCL_DEBUG=INFO, other drivers"
        )
    slowest = max(seconds for _, seconds in answers)
    travelled = 2 * (size - 1) / size * num_bytes  # what a ring sends per rank
    rate = f", {travelled / slowest / 1e9:.2f} GB/s per rank" if size > 1 else ""
    return Finding("ok", f"{backend}: right; {num_bytes >> 20} MiB in {1000 * slowest:.1f} ms{rate}")


@contextlib.contextmanager
def _ending_after(seconds: float, place: str) -> Iterator[None]:
    """End this process if what is inside takes longer: connecting can hang where no time limit of torch's reaches."""

    def give_up() -> None:
        print(f"d2v: error: {place}: no end after {seconds:g} s, giving up", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
