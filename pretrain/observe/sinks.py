"""Where metrics go beside the console: files of lines, TensorBoard, Weights & Biases."""

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

from pretrain.errors import RunError


class Tracker(Protocol):
    """Shows metrics elsewhere; a convenience, without which a run can go on."""

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Show the numbers of ``record`` at its step, as ``kind/name``."""
        ...

    def close(self) -> None:
        """Write what is buffered."""
        ...


def append_line(path: Path, text: str) -> None:
    """Append a line to ``path`` at once: in one write, so that lines of several processes cannot mix.

    A killed process or a full disk can leave a torn last line; it is ended first, so that it harms no other. Nothing
    stays open or buffered: what could not be written is lost, and the next line gets its own chance.

    Raises:
        OSError: if it cannot be written, or not all of it.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        line = ("\n" * torn + text + "\n").encode()
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)


def json_line(record: dict[str, Any]) -> str:
    """A record and the time as one JSON object; numbers that JSON cannot hold (nan, inf) become null."""
    safe = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
    return json.dumps(safe | {"time": round(time.time(), 3)}, allow_nan=False)


class TensorBoard:
    """Events in RUN/tensorboard."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        """Args: the run; the step it goes on from, after which older events are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run_dir / "tensorboard", purge_step=first_step + 1)

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Add every number of a record at its step."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(f"{kind}/{name}", value, record["step"])

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run in RUN/wandb: sent if the user is logged in, else kept for ``wandb sync``.

    Steps are W&B's own. After a resume it ignores those that it has; they are done again with the same result.
    """

    def __init__(self, run_dir: Path, project: str, run_ids: dict[str, str]) -> None:
        """Start the run, or go on with the one whose id is ``run_ids["wandb"]``, where the id is put.

        Raises:
            RunError: if W&B cannot be used as the environment says.
        """
        import wandb

        try:
            self._run = wandb.init(
                project=project,
                name=run_dir.name,
                id=run_ids.get("wandb"),
                resume="allow",
                dir=run_dir,
                mode=wandb_mode(),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except (wandb.errors.Error, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"logging.wandb: {reason}; WANDB_MODE=offline logs without W&B's server") from error
        run_ids["wandb"] = self._run.id

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Log a record at its step."""
        values = {f"{kind}/{name}": value for name, value in record.items() if name != "step"}
        self._run.log(values, step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def wandb_mode() -> Any:
    """WANDB_MODE, else online for those who have credentials: W&B by itself would ask for them."""
    import wandb

    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") or wandb.login(prompt=False) else "offline"
