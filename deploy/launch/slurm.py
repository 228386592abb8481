"""``d2v launch slurm``: submit a static batch script; all that varies is options, variables and files. No torch."""

import argparse
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.arguments import positive_int, whole_number
from deploy.launch.prepare import Launch, launch_arguments, prepare, shown
from deploy.launch.queue import check_none_queued, remember
from pretrain.config import RunConfig
from pretrain.errors import RunError

TEMPLATES = Path(__file__).with_name("templates")
_DESCRIPTION = """\
Submit a recipe as a SLURM job: one task per GPU, saved before the time limit or a preemption and requeued until done.
Every field of the configuration can be set with --section.field VALUE, as for d2v train."""


def main(argv: list[str]) -> int:
    """Run ``d2v launch slurm``.

    Returns:
        0 when the job is in the queue.
    Raises:
        RunError, ConfigError, DataError: for what is wrong with the run, or what sbatch says.
    """
    options, overrides = parser().parse_known_args(_joined(argv))
    _check_options(overrides)
    tasks = options.tasks_per_node or int(options.gpus_per_node.rpartition(":")[2])
    launch = prepare(options, overrides, options.nodes * tasks)
    if launch is None:
        return 0
    site = {"site.env": _read(options.site)} if options.site else {}
    command, variables = submission(launch, options, tasks)
    if options.dry_run:
        print(shown(command, variables))
        return 0
    if not any(one.startswith(("--dependency", "-d")) for one in options.sbatch_arg):
        check_none_queued(launch.folder)
    launch.keep(shown(command, variables), **site)
    job = _submit(command, outside_jobs(os.environ) | variables)
    remember(launch.folder, job)
    logs = f"{job}_*" if _is_array(options) else job
    print(f"job {job}; squeue --job {job}; tail -F {launch.run_dir}/slurm-{logs}.out")
    return 0


def submission(launch: Launch, options: argparse.Namespace, tasks: int) -> tuple[list[str], dict[str, str]]:
    """The command that submits a launch, and the variables to run it with.

    Args:
        launch: what to run.
        options: of ``d2v launch slurm``.
        tasks: per node.
    """
    config, run_dir = launch.request.config, launch.run_dir
    variables = {"D2V_RUN_DIR": str(run_dir), "D2V_PYTHON": options.python}
    if options.max_restarts is not None:
        variables["D2V_MAX_RESTARTS"] = str(options.max_restarts)
    if options.no_retry:
        variables["D2V_RETRY"] = "0"
    command = ["sbatch"]
    if options.site:
        variables["D2V_SITE"] = str(launch.folder / "site.env")
        command = ["bash", str(TEMPLATES / "submit.sh"), variables["D2V_SITE"]]
    cpus = options.cpus_per_task or 1 + config.data.num_workers * len(config.model.modalities)
    command += [
        "--parsable",
        "--export=ALL",  # sites may have another default, and the variables above must arrive
        f"--job-name={config.name}",
        f"--output={run_dir}/slurm-{'%A_%a' if _is_array(options) else '%j'}.out",
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={tasks}",
        *([f"--gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []),
        f"--cpus-per-task={cpus}",
    ]
    if options.notice is not None:
        command.append(f"--signal=B:USR1@{options.notice}")
    return [*command, *options.sbatch_arg, str(TEMPLATES / "train.sbatch"), *launch.arguments], variables


def _check_options(overrides: list[str]) -> None:
    """See that what is left for the configuration has fields, not options that are meant for sbatch.

    Raises:
        RunError: with how to write it.
    """
    known = {one.name for one in dataclasses.fields(RunConfig)}
    for word in overrides:
        name = word.partition("=")[0]
        if name.startswith("--") and "." not in name and name[2:] not in known:
            raise RunError(f"{word}: is no option of d2v launch slurm; one of sbatch is given as --sbatch-arg {word}")


def _is_array(options: argparse.Namespace) -> bool:
    return any(one.startswith(("--array", "-a")) for one in options.sbatch_arg)


def outside_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what it says about the job in which it may be: the new job would inherit that."""
    keep = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {name: value for name, value in environment.items() if name in keep or not name.startswith("SLURM_")}


def _submit(command: list[str], environment: Mapping[str, str]) -> str:
    """The new job's id.

    Raises:
        RunError: with what sbatch says.
    """
    try:
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RunError("sbatch is not here; run this on a login node, or see the command with --dry-run") from error
    if process.returncode != 0:
        said = " ".join((process.stderr or process.stdout).split())
        raise RunError(f"the job was not submitted: {said or f'status {process.returncode}'}")
    return process.stdout.strip().rpartition("\n")[2].partition(";")[0]  # a site file may print; ID;CLUSTER


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v launch slurm``."""
    parser = argparse.ArgumentParser(
        prog="d2v launch slurm", description=_DESCRIPTION, parents=[launch_arguments()], allow_abbrev=False
    )
    parser.add_argument("--nodes", type=positive_int, required=True, help="machines")
    devices = parser.add_mutually_exclusive_group(required=True)
    devices.add_argument("--gpus-per-node", type=_gpus, metavar="[TYPE:]N", help="and as many tasks")
    devices.add_argument(
        "--tasks-per-node",
        type=positive_int,
        metavar="N",
        help="without --gpus-per-node: on CPUs, or where GPUs are asked for with --sbatch-arg --gres=gpu:N",
    )
    parser.add_argument("--cpus-per-task", type=positive_int, help="default: one, and one for each data worker")
    parser.add_argument(
        "--notice",
        type=positive_int,
        metavar="SECONDS",
        help="before the time limit at which the run saves itself: a step, a save and 60 s must fit (default 300)",
    )
    parser.add_argument(
        "--max-restarts", type=whole_number, metavar="N", help="after which the job gives up (default 20)"
    )
    parser.add_argument(
        "--no-retry",
        action="store_true",
        help="do not restart after failures; else that is done where an attempt has brought a newer checkpoint",
    )
    parser.add_argument(
        "--sbatch-arg", action="append", default=[], metavar="ARG", help="one more argument of sbatch; may be repeated"
    )
    parser.add_argument(
        "--site",
        type=Path,
        default=os.environ.get("D2V_SITE"),
        help=f"file to source, made from {TEMPLATES / 'site.env.example'} (default: $D2V_SITE)",
    )
    parser.add_argument("--python", default=sys.executable, help="Python of the tasks (default: this one)")
    return parser


def _gpus(text: str) -> str:
    if not re.fullmatch(r"(?:[\w.-]+:)?[1-9]\d{0,3}", text):
        raise argparse.ArgumentTypeError(f"must be a number or TYPE:NUMBER, got {text!r}")
    return text


def _joined(argv: list[str]) -> list[str]:
    """``--sbatch-arg --qos=high`` as one word: argparse would take the value for an option of its own."""
    if argv[-1:] == ["--sbatch-arg"]:
        raise RunError("--sbatch-arg needs a value")
    words = iter(argv)
    return [f"{word}={next(words)}" if word == "--sbatch-arg" else word for word in words]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"--site {path}: {error.strerror}") from error
