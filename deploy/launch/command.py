"""``d2v launch``: start a run on this machine, through a hostfile, or as a SLURM job. No torch."""

import importlib

from pretrain.errors import RunError

KINDS = {
    "local": ("deploy.launch.local", "N processes on this machine, through DeepSpeed's launcher"),
    "hostfile": ("deploy.launch.hostfile", "several machines through DeepSpeed's hostfile, with or without ssh"),
    "slurm": ("deploy.launch.slurm", "a SLURM job, one task per GPU, requeued until it is done"),
}


def main(argv: list[str]) -> int:
    """Run ``d2v launch KIND ...``.

    Returns:
        The exit status.
    Raises:
        RunError, ConfigError, DataError: for bad input.
    """
    if not argv or argv[0] in ("-h", "--help"):
        rows = "\n".join(f"  {kind:<10}{text}" for kind, (_, text) in KINDS.items())
        print(f"usage: d2v launch KIND RECIPE ...\n\n{rows}\n\nd2v launch KIND --help says more.")
        return 0
    kind, *rest = argv
    if kind not in KINDS:
        raise RunError(f"unknown launch {kind!r}; known: {', '.join(KINDS)}")
    return int(importlib.import_module(KINDS[kind][0]).main(rest))
