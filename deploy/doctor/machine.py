"""Checks of the machine and of who started this process. No torch."""

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from deploy.doctor.findings import Finding, Level
from deploy.progress import readable_bytes
from pretrain.config import RunConfig
from pretrain.environment import read_environment
from pretrain.errors import RunError
from pretrain.recipes.registry import recipe

_SHM = Path("/dev/shm")
_PROGRAM = "#include <vector>\nint main() { std::vector<int> v(3, 1); return v.size() == 3 ? 0 : 1; }\n"
_MIN_OPEN_FILES = 1024
"""128 open shards, handles of tensors on their way from the workers, sockets to the other ranks."""
_ANSWER_SECONDS = 10


def python() -> Finding:
    """The interpreter and the cores it may use."""
    cores = len(os.sched_getaffinity(0))
    return Finding("ok", f"{platform.python_version()} at {sys.executable}, {cores} of {os.cpu_count()} cores")


def packages() -> Finding:
    """The installed packages against those that this one was tested with."""
    try:
        wanted = dict(line.split("==") for line in metadata.requires("data2vec-scale") or [])
    except metadata.PackageNotFoundError:
        return Finding("error", "data2vec-scale itself is not installed", "pip install --no-deps --editable .")
    return judge_packages(wanted, {name: installed_version(name) for name in wanted})


def judge_packages(wanted: Mapping[str, str], installed: Mapping[str, str | None]) -> Finding:
    """Missing packages are an error, other versions a warning.

    Args:
        wanted: versions by name.
        installed: versions by name, with or without a build ("+cpu"); None if it is missing.
    """
    missing = [name for name in wanted if installed[name] is None]
    if missing:
        lines = " ".join(f"{name}=={wanted[name]}" for name in missing)
        return Finding("error", f"not installed: {', '.join(missing)}", f"pip install {lines}")
    others = {name: have for name, have in installed.items() if (have or "").partition("+")[0] != wanted[name]}
    if others:
        text = ", ".join(f"{name} {have} (tested: {wanted[name]})" for name, have in others.items())
        return Finding("warning", text, "pip install -r requirements.txt")
    return Finding("ok", f"all {len(wanted)} of requirements.txt in their versions")


def installed_version(name: str) -> str | None:
    """Of a distribution; None if it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def compiler() -> Finding:
    """A C++ program is built and run; torch.compile needs that, and DeepSpeed's operators also need ninja."""
    name = os.environ.get("CXX", "g++")
    fix = "install it (apt-get install g++), or export CXX; only compiled code (torch.compile) needs it"
    if shutil.which(name) is None:
        return Finding("warning", f"{name} is not there", fix)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program")
        build = subprocess.run(
            [name, "-fopenmp", "-x", "c++", "-", "-o", program], input=_PROGRAM, capture_output=True, text=True
        )
        if build.returncode or subprocess.run([program]).returncode:
            return Finding("warning", f"{name} builds no OpenMP program: {build.stderr.strip()[-200:]}", fix)
    version = _answer([name, "-dumpfullversion"])
    bin_of_this = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ninja = shutil.which("ninja", path=bin_of_this)
    return Finding("ok", f"{name} {version}, " + (f"ninja {_answer([ninja, '--version'])}" if ninja else "no ninja"))


def shared_memory() -> Finding:
    """Data workers hand their batches over through /dev/shm."""
    with tempfile.TemporaryFile(dir=_SHM) as probe:
        probe.write(bytes(1 << 20))
        probe.flush()
    usage, config = shutil.disk_usage(_SHM), recipe("image-base")
    batch = bytes_of_batch(config)
    return judge_shared_memory(usage.total, usage.free, batch, config.data.num_workers * config.data.prefetch_batches)


def bytes_of_batch(config: RunConfig) -> int:
    """Images of one step over all ranks."""
    source = config.data.image
    assert source is not None
    return config.units_per_step("image") * source.channels * source.size**2 * 4


def judge_shared_memory(total: int, free: int, batch: int, num_batches: int) -> Finding:
    """Bytes of /dev/shm against the batches of image-base that the workers of one machine keep ready there.

    Every rank has its own workers, and they have as much smaller a share of the batch: the number of ranks drops out.
    """
    text = f"{readable_bytes(free)} of {readable_bytes(total)} free in {_SHM}; image-base on this machine alone"
    if free >= num_batches * batch:
        return Finding("ok", f"{text} keeps {readable_bytes(num_batches * batch)} of batches there")
    return Finding(
        "warning" if free >= batch else "error",
        f"{text} would keep {readable_bytes(num_batches * batch)} of batches there: data workers die of a bus error",
        "docker run --shm-size=16g or --ipc=host; mount -o remount,size=50% /dev/shm; or smaller data.prefetch_batches",
    )


def limits() -> Finding:
    """Open files and locked memory of a process."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    infiniband = Path("/sys/class/infiniband")
    return judge_limits(files, most, locked, infiniband.is_dir() and any(infiniband.iterdir()))


def judge_limits(files: int, most: int, locked: int, has_infiniband: bool) -> Finding:
    """Soft and hard limit of open files, limit of locked bytes (-1: none), and whether NCCL would lock memory."""
    memory = "unlimited" if locked == resource.RLIM_INFINITY else readable_bytes(locked)
    text = f"{files:,} open files (at most {most:,}), {memory} locked memory"
    if files < _MIN_OPEN_FILES:
        return Finding("warning", f"{text}; data workers need {_MIN_OPEN_FILES:,} files", f"ulimit -n {most}")
    if has_infiniband and locked != resource.RLIM_INFINITY:
        fix = "ulimit -l unlimited; for SLURM LimitMEMLOCK=infinity in slurmd's unit file"
        return Finding("warning", f"{text}; NCCL locks more than that for InfiniBand", fix)
    return Finding("ok", text)


def slurm() -> Finding:
    """SLURM's commands, whether its controller answers, and where this process stands."""
    if shutil.which("sinfo") is None or shutil.which("scontrol") is None:
        return Finding("absent", "sinfo and scontrol are not there: no SLURM, or a container without its commands")
    job = os.environ.get("SLURM_JOB_ID")
    try:
        version = _answer(["sinfo", "--version"])
        nodes = _answer(["sinfo", "--noheader", "--format=%D"])
    except (RunError, subprocess.TimeoutExpired) as error:
        level: Level = "warning" if job else "absent"
        return Finding(level, f"sinfo is there, but its controller does not answer: {error}")
    inside = f"in job {job}, {os.environ.get('SLURM_NTASKS', '1')} tasks" if job else "not in an allocation"
    return Finding("ok", f"{version}, {sum(map(int, nodes.split()))} nodes, {inside}")


def launcher() -> Finding:
    """Who this process is, as ``d2v train`` would understand it."""
    try:
        me = read_environment(os.environ)
    except RunError as error:
        return Finding("error", str(error), "unset what an earlier launcher left in the environment")
    if me.launcher == "single":
        return Finding("ok", "none: d2v train here is a run of one process")
    return Finding(
        "ok",
        f"{me.launcher}: rank {me.rank} of {me.world_size}, local rank {me.local_rank} of {me.local_size}, "
        f"master {me.master_addr}:{me.master_port}; d2v doctor --distributed checks all of them together",
    )


def _answer(command: list[str]) -> str:
    """What a command prints.

    Raises:
        RunError: if it fails.
    """
    process = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    if process.returncode:
        raise RunError(process.stderr.strip().splitlines()[-1] if process.stderr.strip() else f"{command[0]} failed")
    return process.stdout.strip()
