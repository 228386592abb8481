"""The process that a launcher starts: ``d2v train RECIPE``. Signals are caught before anything heavy is imported."""

import argparse
import os
from pathlib import Path

from pretrain import preempt
from pretrain.config import RunConfig, from_yaml, with_overrides
from pretrain.environment import Processes, read_environment
from pretrain.errors import RunError
from pretrain.recipes.registry import RECIPES, recipe

_DESCRIPTION = """\
Pretrain a recipe. Alone this is a one-process run; under deepspeed, torchrun or srun it is distributed.
Every field of the configuration can be set with --section.field VALUE, e.g. --training.max-steps 1000."""


def main(argv: list[str]) -> int:
    """Run ``d2v train``.

    Returns:
        0 when the run is done or was stopped by a signal after saving.
    Raises:
        RunError, DataError, ConfigError: for bad input; the caller prints them.
    """
    stop = preempt.install()
    parser = _parser()
    options, overrides = parser.parse_known_args(argv)
    if options.help:
        return _help(parser, options.recipe)
    if options.recipe is None:
        raise RunError(f"which recipe? known: {', '.join(RECIPES)}")
    processes = read_environment(os.environ)
    config = recipe(options.recipe)
    if options.config:
        config = from_yaml(_read(options.config), str(options.config), config)
    config = with_overrides(config, overrides)
    run_dir = _prepare_run_dir(options.run_dir or Path("runs") / config.name)
    return _train(config, run_dir, processes, stop, options)


def _train(
    config: RunConfig,
    run_dir: Path,
    processes: Processes,
    stop: preempt.StopRequest,
    options: argparse.Namespace,
) -> int:
    from pretrain.parallel.deepspeed_config import read_user_json
    from pretrain.parallel.grid import make_grid

    user_deepspeed = read_user_json(options.deepspeed) if options.deepspeed else None
    grid = make_grid(config.parallel, config.model, processes.world_size)  # raises before heavy imports, as does
    for modality in config.model.modalities:
        config.microbatches(modality, grid.dp_size)
    from pretrain.build import build_trainer
    from pretrain.parallel.zero import leave_processes

    trainer = build_trainer(config, run_dir, processes, stop, resume=options.resume, user_deepspeed=user_deepspeed)
    if processes.rank == 0:
        preempt.unmark(run_dir)
    try:
        outcome = trainer.train()
    except ValueError as error:
        trainer.fail(error)
        raise
    finally:
        trainer.close()
    leave_processes()
    if processes.rank == 0:
        preempt.mark(run_dir, done=outcome == "done")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="d2v train",
        description=_DESCRIPTION,
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument("-h", "--help", action="store_true", help="show this, or all fields of RECIPE, and exit")
    return parser


def _help(parser: argparse.ArgumentParser, name: str | None) -> int:
    """The command's help; with a recipe also every field with its meaning and the recipe's value."""
    print(parser.format_help())
    if name is not None:
        import tyro

        fields = tyro.extras.get_parser(
            RunConfig, default=recipe(name), prog=f"d2v train {name}", config=(tyro.conf.AvoidSubcommands,)
        )
        print(fields.format_help())
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"--config {path}: {error.strerror}") from error


def _prepare_run_dir(run_dir: Path) -> Path:
    """Make the run directory and see that it can be written.

    Raises:
        RunError: if not.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"--run-dir {run_dir}: cannot be written: {error.strerror}") from error
    return run_dir
