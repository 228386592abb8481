"""What a run is asked to be: recipe, YAML, overrides, DeepSpeed JSON -> configuration and layout. No torch."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig, from_yaml, with_overrides
from pretrain.errors import RunError
from pretrain.parallel.deepspeed_config import deepspeed_config, read_user_json
from pretrain.parallel.grid import Grid, make_grid
from pretrain.recipes.registry import RECIPES, recipe
from pretrain.work import check_rows


@dataclass(frozen=True, kw_only=True)
class Request:
    """A run that was asked for."""

    recipe: str
    """Whose configuration was changed; ``config.name`` is what the run is called."""
    config: RunConfig
    run_dir: Path
    resume: str
    """``auto`` or ``never``."""
    deepspeed: dict[str, Any] | None
    """The user's DeepSpeed JSON."""


def request_arguments() -> argparse.ArgumentParser:
    """A parent parser with what ``read_request`` understands."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("recipe", nargs="?", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--run-dir", type=Path, help="where the run is written (default runs/RECIPE)")
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto (default): go on from the newest whole checkpoint of the run directory; never: refuse if it has one",
    )
    parser.add_argument("--config", type=Path, help="YAML laid over the recipe, e.g. another run's config.yaml")
    parser.add_argument("--deepspeed", type=Path, help="DeepSpeed JSON laid over the generated one")
    return parser


def read_request(options: argparse.Namespace, overrides: list[str]) -> Request:
    """Put a configuration together.

    Args:
        options: what ``request_arguments`` parsed.
        overrides: the remaining arguments, ``--section.field VALUE``.
    Raises:
        RunError, ConfigError, DataError: naming the argument or field that is wrong.
    """
    if options.recipe is None:
        raise RunError(f"which recipe? known: {', '.join(RECIPES)}")
    config = recipe(options.recipe)
    if options.config:
        config = from_yaml(_read(options.config), str(options.config), config)
    config = with_overrides(config, overrides)
    return Request(
        recipe=options.recipe,
        config=config,
        run_dir=options.run_dir or Path("runs") / config.name,
        resume=options.resume,
        deepspeed=read_user_json(options.deepspeed) if options.deepspeed else None,
    )


def lay_out(config: RunConfig, world_size: int, user: dict[str, Any] | None) -> tuple[Grid, dict[str, Any]]:
    """The grid of ranks and the DeepSpeed JSON of a run on ``world_size`` processes.

    Raises:
        RunError: if the layout is not legal, a batch does not divide, or the ``user``'s JSON contradicts.
    """
    grid = make_grid(config.parallel, config.model, world_size)
    check_rows(config, grid)
    return grid, deepspeed_config(
        config.optim,
        config.precision,
        config.parallel,
        microbatch_size=sum(config.microbatches(name, grid.dp_size)[0] for name in config.model.modalities),
        dp_size=grid.dp_size,
        user=user,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"--config {path}: {error.strerror}") from error
