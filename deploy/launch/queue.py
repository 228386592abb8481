"""Jobs of a run that are still in SLURM's queue. No torch."""

import subprocess
from pathlib import Path

from pretrain.errors import RunError


def remember(folder: Path, job: str) -> None:
    """Note a job that was submitted for the run whose launch folder this is."""
    with (folder / "jobs").open("a", encoding="utf-8") as stream:
        stream.write(f"{job}\n")


def check_none_queued(folder: Path) -> None:
    """See that no job would meet the new one in the run directory, or read the new one's files when it restarts.

    Raises:
        RunError: naming the job, if there is one; where SLURM cannot be asked, there is none.
    """
    jobs = folder / "jobs"
    if not jobs.exists():
        return
    submitted = jobs.read_text(encoding="utf-8").split()
    command = ["squeue", "--noheader", "--format=%F", f"--jobs={','.join(submitted)}"]  # %F: of an array its own id
    try:
        queued = subprocess.run(command, capture_output=True, text=True).stdout.split()
    except FileNotFoundError:
        return
    if queued:
        raise RunError(
            f"{folder.parent}: job {queued[0]} of this run is in the queue; end it with scancel {queued[0]}, or submit "
            "behind it with --sbatch-arg --dependency=singleton"
        )
