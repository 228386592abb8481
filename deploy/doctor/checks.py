"""All checks, each in a process of its own: one that dies or hangs is a row of the table, not its end. No torch."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple

from deploy.doctor.findings import Finding

_INSTALL = "pip install -r requirements.txt"
_KILL_SECONDS = 2
"""A process stuck in a driver or a dead file system does not even die; it is left behind then."""


class Check(NamedTuple):
    """One row."""

    name: str
    function: str
    """``module:function`` without arguments that gives a ``Finding``."""
    fix: str = _INSTALL
    """What to do if the function raises, dies or hangs."""
    timeout_seconds: float = 90.0


CHECKS = (
    Check("python", "deploy.doctor.machine:python"),
    Check("packages", "deploy.doctor.machine:packages"),
    Check("devices", "deploy.doctor.engine:devices", "install the torch that fits the driver that nvidia-smi shows"),
    Check("collectives", "deploy.doctor.engine:collectives", "NCCL_DEBUG=INFO d2v doctor says what NCCL tries"),
    Check("deepspeed", "deploy.doctor.engine:deepspeed"),
    Check("build cache", "deploy.doctor.build_cache:stale_locks", "export TORCH_EXTENSIONS_DIR=A_FOLDER_THAT_WORKS"),
    Check("megatron-core", "deploy.doctor.engine:megatron"),
    Check("compiler", "deploy.doctor.machine:compiler", "install g++ (apt-get install g++)"),
    Check("images", "deploy.doctor.data:images"),
    Check("sound", "deploy.doctor.data:sound"),
    Check("resampling", "deploy.doctor.data:resampling"),
    Check("tokenizer", "deploy.doctor.data:tokenizer"),
    Check("shards", "deploy.doctor.data:shards"),
    Check("wandb", "deploy.doctor.data:wandb", "--logging.wandb false (the default) does without"),
    Check("shared memory", "deploy.doctor.machine:shared_memory", "mount a tmpfs at /dev/shm"),
    Check("limits", "deploy.doctor.machine:limits"),
    Check("slurm", "deploy.doctor.machine:slurm", "ask the cluster's administrators", 20.0),
    Check("launcher", "deploy.doctor.machine:launcher"),
)


def run_checks(checks: tuple[Check, ...] = CHECKS) -> Iterator[tuple[str, Finding]]:
    """Names and findings in the order of ``checks``, each as soon as it is there; several checks run at a time."""
    with ThreadPoolExecutor(max_workers=max(2, min(8, len(os.sched_getaffinity(0))))) as pool:
        yield from zip((check.name for check in checks), pool.map(run_check, checks), strict=True)


def run_check(check: Check) -> Finding:
    """One check in a process of its own, killed after its time."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # pipes could stay open in grandchildren
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.doctor.single", check.function],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            status = process.wait(check.timeout_seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            return Finding("error", f"no answer within {check.timeout_seconds:g} s", check.fix)
        if status:
            return Finding("error", _ending(status, _last_line(err)), check.fix)
        answer = _last_line(out)
    finding = Finding(**json.loads(answer))
    if finding.level == "error" and not finding.fix:
        return Finding("error", finding.detail, check.fix)
    return finding


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_SECONDS)


def _ending(status: int, last_words: str) -> str:
    how = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"{how}: {last_words}" if last_words else how


def _last_line(stream: IO[bytes]) -> str:
    stream.seek(0)
    lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
