"""A real SLURM of several nodes on this machine: munged, slurmctld and one slurmd per node, with their own folder.

Nothing outside the folder is written. Every process of it, and of its jobs, has the folder's SLURM_CONF in its
environment; by that they are found and ended, by a process of its own, also when the tests are killed.
"""

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pretrain.environment import free_port

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
_PLUGINS = ("/usr/lib/x86_64-linux-gnu/slurm-wlm", "/usr/lib/aarch64-linux-gnu/slurm-wlm", "/usr/lib/slurm")


def missing() -> str | None:
    """Why there can be no cluster here, after an attempt to install it; None if there can."""
    if os.geteuid() != 0:
        return "not root"
    if not all(shutil.which(program) for program in PROGRAMS):
        problem = _install()
        if problem is not None:
            return problem
    return None if any(Path(folder).is_dir() for folder in _PLUGINS) else "SLURM's plugins are in an unknown place"


def _install() -> str | None:
    if shutil.which("apt-get") is None:
        return f"{', '.join(PACKAGES)} are not installed and there is no apt-get"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
    for command in (["apt-get", "update"], install):
        try:
            process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)} took longer than 120 s"
        if process.returncode != 0:
            return f"{' '.join(command)}: {' '.join(process.stderr.split())[-200:]}"
    return None


class Cluster:
    """Nodes n0, n1, ... that all are this machine; two pretended GPUs each."""

    def __init__(self, num_nodes: int = 2) -> None:
        """Start everything and wait until all nodes are idle."""
        self.nodes = [f"n{number}" for number in range(num_nodes)]
        self.folder = Path(tempfile.mkdtemp(prefix="d2v-slurm-"))
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._guard = subprocess.Popen(
            [sys.executable, "-m", __name__, self.folder],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
        )
        for name in ("run", "state", "log", "dev"):
            (self.folder / name).mkdir()
        try:
            self._configure()
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the cluster and of its jobs, and remove the folder."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()

    def run(self, *command: str, timeout: float = 20, **variables: str) -> str:
        """Standard output of a command inside the cluster; AssertionError with all it said if it fails."""
        process = subprocess.run(
            command, env=self.environment | variables, capture_output=True, text=True, timeout=timeout
        )
        assert process.returncode == 0, f"{command}\n{process.stdout}\n{process.stderr}\n{self.logs()}"
        return process.stdout

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job, by field."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Until ``condition`` holds; AssertionError with the logs if it does not."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{self.logs()}"
            time.sleep(0.1)

    def kill_node(self, node: str) -> None:
        """Power failure: the daemon, the steps and the tasks of a node are gone at once."""
        _kill(self.folder, lambda environment: environment.get("SLURMD_NODENAME") == node)

    def start_node(self, node: str) -> None:
        """Power on, and wait until the node can be used."""
        self._daemon("slurmd", "-D", "-N", node, SLURMD_NODENAME=node)
        self.wait_for(f"{node} to be up", lambda: "down" not in self._states(node), 30)

    def logs(self) -> str:
        """The daemons' last lines and the queue."""
        lines = [f"{path.name}: {line}" for path in self.folder.glob("log/*.log") for line in _tail(path, 12)]
        return "\n".join(lines)

    def _start(self) -> None:
        munge = self.folder / "run" / "munge"
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o600)
        self._daemon(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={self.folder}/munge.key",
            f"--socket={munge}.socket",
            f"--pid-file={munge}.pid",
            f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={munge}.seed",
        )
        self.wait_for("munged", Path(f"{munge}.socket").exists, 10)
        self._daemon("slurmctld", "-D")
        for node in self.nodes:
            self._daemon("slurmd", "-D", "-N", node, SLURMD_NODENAME=node)
        self.wait_for("idle nodes", lambda: self._states(",".join(self.nodes)) == "idle " * len(self.nodes), 20)

    def _states(self, nodes: str) -> str:
        command = ["sinfo", "--noheader", "--Node", "--nodes", nodes, "--format", "%t "]
        process = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=20)
        return process.stdout.replace("\n", "") if process.returncode == 0 else "down"

    def _daemon(self, *command: str, **variables: str) -> None:
        """Start a program that stays; its output goes to a log."""
        path = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
        assert path is not None
        with (self.folder / "log" / f"{command[0]}.log").open("ab") as log:
            subprocess.Popen(
                [path, *command[1:]],
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _configure(self) -> None:
        host = socket.gethostname()
        plugins = next(folder for folder in _PLUGINS if Path(folder).is_dir())
        nodes = "".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} "
            "CPUs=8 RealMemory=8000 Gres=gpu:2 State=UNKNOWN\n"
            for node in self.nodes
        )
        for number in range(2):  # SLURM takes character devices only for GPUs; these are /dev/null
            os.mknod(self.folder / "dev" / f"nvidia{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        names = f"{self.nodes[0]},{','.join(self.nodes[1:])}" if len(self.nodes) > 1 else self.nodes[0]
        files = {
            "slurm.conf": _CONFIGURATION.format(
                folder=self.folder, host=host, plugins=plugins, port=free_port(), nodes=nodes, names=names
            ),
            "gres.conf": f"NodeName={names} Name=gpu File={self.folder}/dev/nvidia[0-1]\n",
            "cgroup.conf": "CgroupPlugin=cgroup/v1\n",  # slurmd loads one of the two; this one needs no systemd
            "plugstack.conf": "",
        }
        for name, content in files.items():
            (self.folder / name).write_text(content, encoding="utf-8")


_CONFIGURATION = """\
ClusterName=d2v
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
PluginDir={plugins}
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
KillWait=20
SlurmctldTimeout=10
SlurmdTimeout=5
GresTypes=gpu
{nodes}PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
"""cred_expire is also how long a requeued job waits, SlurmdTimeout when a dead node is noticed."""


def _tail(path: Path, lines: int) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]


def _kill(folder: Path, chosen: Callable[[dict[str, str]], bool]) -> None:
    """Kill those processes of the cluster in a folder, and of its jobs, whose environment is chosen."""
    victims = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get("SLURM_CONF") == str(folder / "slurm.conf") and chosen(environment):
                process.suspend()  # or some would still report that others died
                victims.append(process)
        except psutil.Error:
            continue
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.kill()
    time.sleep(0.2)  # they may be others' children: nothing to wait for


def guard(folder: Path) -> None:
    """End the cluster in a folder when whoever started this process says so, or is gone in whatever way."""
    sys.stdin.read()
    for _ in range(3):  # what is about to start another process may have done so
        _kill(folder, lambda _: True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
