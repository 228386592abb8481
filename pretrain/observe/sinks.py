"""Where metrics go beside the console: metrics.jsonl, TensorBoard, Weights & Biases."""

import json
import math
import netrc
import os
import time
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only file of one JSON object per line, whole even after a kill in the middle of one."""

    def __init__(self, path: Path) -> None:
        """Open ``path``; a torn last line of a killed run is ended first, so that it harms no other."""
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._stream = path.open("a", encoding="utf-8", buffering=1)
        if torn:
            self._stream.write("\n")

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; numbers that JSON cannot hold (nan, inf) become null."""
        safe = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        self._stream.write(json.dumps(safe | {"time": round(time.time(), 3)}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class TensorBoard:
    """Events in RUN/tensorboard."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        """Args: the run; the step it goes on from, after which older events are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run_dir / "tensorboard", purge_step=first_step + 1 if first_step else None)

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Add every number of a record at its step."""
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, record["step"])

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run: online if the user is logged in, else offline in RUN/wandb."""

    def __init__(self, run_dir: Path, project: str, run_ids: dict[str, str]) -> None:
        """Start, or go on with, the run whose id ``run_ids["wandb"]`` keeps."""
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in(os.environ) else "offline")
        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            id=run_ids.setdefault("wandb", wandb.util.generate_id()),
            resume="allow",
            dir=run_dir,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Log a record at its step."""
        values = {f"{kind}/{name}": value for name, value in record.items() if name != "step"}
        self._run.log(values, step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def logged_in(env: Any) -> bool:
    """Whether W&B would find credentials."""
    if env.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
