"""Names and addresses of machines: from SLURM's lists, through scontrol where it is. No torch."""

import re
import shutil
import socket
import subprocess

from pretrain.errors import RunError
from pretrain.nodelist import parse_nodelist


def expand_nodelist(nodelist: str) -> list[str]:
    """The nodes of a SLURM list, in its order: ``n[08-10,3],login`` are n08, n09, n10, n3, login.

    Raises:
        RunError: if it is no such list.
    """
    if shutil.which("scontrol"):
        process = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True)
        if process.returncode == 0 and process.stdout:
            return process.stdout.split()
    return parse_nodelist(nodelist)


def address_of(node: str) -> str:
    """The name under which other nodes reach a node, or its address if only SLURM knows the name.

    Raises:
        RunError: if nobody does.
    """
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        shown = _show_node(node)
        address = re.search(r"\bNodeAddr=(\S+)", shown)
        if address is None:
            raise RunError(
                f"{node}: no name service knows this host; mend the name, or give --master-addr ADDRESS"
            ) from None
        return address[1]
    return node


def _show_node(node: str) -> str:
    if not shutil.which("scontrol"):
        return ""
    return subprocess.run(["scontrol", "--oneliner", "show", "node", node], capture_output=True, text=True).stdout
