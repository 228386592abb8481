"""The process that a launcher starts: ``d2v train RECIPE``. Signals are caught before anything heavy is imported."""

import argparse
import os
import secrets
from pathlib import Path

from pretrain import preempt
from pretrain.checkpoint.progress import check_fresh, is_done
from pretrain.config import RunConfig
from pretrain.environment import Processes, read_environment
from pretrain.errors import RunError
from pretrain.exclusive import alone_in
from pretrain.recipes.registry import recipe
from pretrain.request import Request, lay_out, read_request, request_arguments

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
    command = parser()
    options, overrides = command.parse_known_args(argv)
    if options.help:
        return _help(command, options.recipe)
    processes = read_environment(os.environ)
    request = read_request(options, overrides)
    _prepare_run_dir(request.run_dir)
    return _train(request, processes, stop)


def _train(request: Request, processes: Processes, stop: preempt.StopRequest) -> int:
    config, run_dir = request.config, request.run_dir
    lay_out(config, processes.world_size, request.deepspeed)  # raises before heavy imports
    if request.resume == "auto" and is_done(run_dir, config):
        if processes.rank == 0:
            print(f"{run_dir} is done: it has all {config.training.max_steps} steps")
        return 0
    if request.resume == "never":
        check_fresh(run_dir)
    if processes.rank > 0:
        _run(request, processes, stop)
        return 0
    with alone_in(run_dir):
        (run_dir / "FAILED").unlink(missing_ok=True)
        preempt.mark(run_dir, done=_run(request, processes, stop) == "done")
    return 0


def _run(request: Request, processes: Processes, stop: preempt.StopRequest) -> str:
    """Build the run and take its steps; returns how it ended."""
    from pretrain.parallel.zero import abandon_processes, leave_processes

    try:
        outcome = _steps(request, processes, stop)
    except ValueError:
        abandon_processes()
        raise
    leave_processes()
    return outcome


def _steps(request: Request, processes: Processes, stop: preempt.StopRequest) -> str:
    from pretrain.build import build_trainer

    config, run_dir, user = request.config, request.run_dir, request.deepspeed
    trainer = build_trainer(config, run_dir, processes, stop, resume=request.resume, user_deepspeed=user)
    if processes.rank == 0:
        preempt.unmark(run_dir)
    try:
        return trainer.train()
    except ValueError as error:
        trainer.fail(error)
        if not isinstance(error.__cause__, RuntimeError):  # then it is about other machines, or about storage
            preempt.mark_failed(run_dir, str(error))
        raise
    finally:
        trainer.close()


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v train``."""
    parser = argparse.ArgumentParser(
        prog="d2v train",
        description=_DESCRIPTION,
        parents=[request_arguments()],
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument("-h", "--help", action="store_true", help="show this, or all fields of RECIPE, and exit")
    return parser


def _help(command: argparse.ArgumentParser, name: str | None) -> int:
    """The command's help; with a recipe also every field with its meaning and the recipe's value."""
    print(command.format_help())
    if name is not None:
        import tyro

        fields = tyro.extras.get_parser(
            RunConfig, default=recipe(name), prog=f"d2v train {name}", config=(tyro.conf.AvoidSubcommands,)
        )
        print(fields.format_help())
    return 0


def _prepare_run_dir(run_dir: Path) -> None:
    """Make the run directory and see that it can be written.

    Raises:
        RunError: if not.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / f".probe-{secrets.token_hex(4)}"  # process ids repeat on other machines
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"--run-dir {run_dir}: cannot be written: {error.strerror}") from error
