"""How far the run in a directory is, and whether a configuration may go on from there. No torch."""

from pathlib import Path

from pretrain.checkpoint.store import complete_checkpoints
from pretrain.config import RESUME_MAY_CHANGE, RunConfig, differences, from_yaml
from pretrain.errors import RunError


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint, whose files nobody has checked yet."""
    return next(reversed(complete_checkpoints(run_dir)), None)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("step-"))


def is_done(run_dir: Path, config: RunConfig) -> bool:
    """Whether the run ended by itself and has all steps that are wanted now: an old DONE says nothing about more steps.

    Raises:
        RunError: if it has, but was another run.
    """
    newest = newest_checkpoint(run_dir)
    if newest is None or not (run_dir / "DONE").exists() or step_of(newest) < config.training.max_steps:
        return False
    check_continues(config, newest)
    return True


def check_fresh(run_dir: Path) -> None:
    """See that a run which shall begin anew destroys nothing.

    Raises:
        RunError: if there are checkpoints.
    """
    if complete_checkpoints(run_dir):
        raise RunError(f"{run_dir} already holds checkpoints; choose another --run-dir, or --resume auto")


def check_continues(config: RunConfig, checkpoint: Path) -> None:
    """See that a checkpoint was written with a configuration that learns the same.

    Raises:
        RunError: naming what differs.
    """
    changed = differences(read_run_config(checkpoint), config, RESUME_MAY_CHANGE)
    if changed:
        raise RunError(
            f"{checkpoint} was written with another configuration ({'; '.join(changed[:3])}"
            f"{' and more' if len(changed) > 3 else ''}); set them back, or use another --run-dir"
        )


def read_run_config(checkpoint: Path) -> RunConfig:
    """The configuration that a checkpoint was written with.

    Raises:
        RunError: if config.yaml is missing or does not fit this release.
    """
    path = checkpoint / "config.yaml"
    try:
        return from_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; is {checkpoint} a complete checkpoint?") from error
