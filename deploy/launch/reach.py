"""Whether DeepSpeed's launcher will reach the machines of a hostfile. No torch."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from pretrain.errors import RunError


def check_reachable(hosts: Sequence[str], ssh_port: int | None) -> None:
    """See that every machine can be reached as pdsh will do it.

    DeepSpeed tries the first one only; the processes of the others would wait for a missing one.

    Raises:
        RunError: naming the first that cannot, with what ssh says; or if a program is missing here.
    """
    for program in ("pdsh", "ssh"):
        if shutil.which(program) is None:
            raise RunError(f"{program} is not here: install it, or run this with --no-ssh on each machine")
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    ssh += [] if ssh_port is None else ["-p", str(ssh_port)]
    ssh += shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    tries = {
        host: subprocess.Popen(
            [*ssh, host, "true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for host in hosts
    }
    said = {host: " ".join(process.communicate()[1].split()) for host, process in tries.items()}
    for host, process in tries.items():
        if process.returncode != 0:
            why = said[host] or f"ssh ended with status {process.returncode}"
            raise RunError(
                f"{host}: cannot be reached over ssh without a password ({why}); mend that, or run this with --no-ssh "
                "on each machine"
            )
