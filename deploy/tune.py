"""``d2v tune``: measure the planner's best layouts with short real runs on this machine."""

import argparse
import dataclasses
import os
import time
from pathlib import Path

from deploy.arguments import positive_float, positive_int
from deploy.plan.command import flags, pinned_json, read_config, read_pinned, write
from deploy.plan.hardware import Cluster, read_cluster, read_devices
from deploy.plan.plan import Plan
from deploy.plan.problem import Problem
from deploy.plan.search import search
from deploy.plan.table import describe
from deploy.tuning import calibrate, results
from deploy.tuning.candidates import best
from deploy.tuning.halving import successive_halving
from deploy.tuning.trial import Measurement, measure
from pretrain.errors import RunError
from pretrain.parallel.deepspeed_config import read_user_json
from pretrain.recipes.registry import RECIPES, recipe

_DESCRIPTION = """\
Run the planner's best layouts of a recipe for a few real steps on this machine, the better half for twice as many, and
write the fastest one's DeepSpeed JSON and flags. A layout that runs out of memory or fails is recorded, not fatal. Any
field of the recipe can be set with --section.field VALUE; of --parallel only layouts with that value are measured."""


def main(argv: list[str]) -> int:
    """Run ``d2v tune``.

    Returns:
        0 if a candidate ran, else 1.
    Raises:
        RunError, DataError, ConfigError: for bad input.
    """
    options, overrides = parser().parse_known_args(argv)
    user = read_user_json(options.deepspeed) if options.deepspeed else {}
    cluster = _cluster(options)
    config, pinned = pinned_json(read_config(options, overrides), read_pinned(overrides), user)
    problem = Problem(config, cluster, recipe(options.recipe), user, pinned)
    from pretrain.preflight import check_data  # numpy, which help shall not wait for

    check_data(config)  # raises here rather than in every trial
    candidates = best(search(problem), options.candidates)
    if not candidates:
        raise RunError(f"no layout of {config.name} fits {cluster}; d2v plan says why")
    out: Path = options.out or Path("runs") / f"tune-{config.name}"
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def left() -> float:
        return started + 60 * options.minutes - time.monotonic()

    def trial(plan: Plan, steps: int) -> Measurement | None:
        number = candidates.index(plan) + 1
        print(f"candidate {number}, {steps} steps: {describe(plan)} ...", flush=True)
        given = [*(["--config", str(options.config)] if options.config else []), *overrides, *flags(plan)]
        given += ["--deepspeed", str(options.deepspeed)] if options.deepspeed else []
        seconds = min(options.seconds, max(left(), 1.0))
        run_dir = out / f"trial-{number:02}"
        result = measure([options.recipe, *given], cluster.size, run_dir, steps=steps, limit_seconds=seconds)
        if result.was_ended and seconds < options.seconds:  # --minutes ended it: that is no fault of the layout
            print("  time is up", flush=True)
            return None
        print(f"  {result.problem or f'{result.median:.4f} s a step'}", flush=True)
        return result

    standings = successive_halving(candidates, trial, steps=options.steps, enough=lambda: left() <= 0)
    if not standings:
        raise RunError(
            f"--minutes: {options.minutes:g} were over before {options.steps} steps of one layout; allow more"
        )
    unmeasured = len(candidates) - len(standings)
    results.write(out, standings, unmeasured)
    print(f"\n{results.as_text(standings, unmeasured)}")
    winner = standings[0]
    if not winner.last.seconds:
        return 1
    write(out, winner.candidate, user)
    print(f"\nwritten to {out}: deepspeed.json, flags.txt, table.txt, tuning.json, tuning.png")
    if options.calibrate:
        device = calibrate.fit(problem, [(one.candidate, one.last.median) for one in standings if one.last.seconds])
        calibrate.write(out / "hardware.yaml", cluster.name, device)
        print(f"calibrated: d2v plan {options.recipe} --cluster {cluster} --hardware {out / 'hardware.yaml'}")
    return 0


def _cluster(options: argparse.Namespace) -> Cluster:
    """This machine: what is asked for, else what torch finds."""
    devices = read_devices(options.hardware)
    cluster = read_cluster(options.cluster or _this_machine(), devices)
    if cluster.num_nodes > 1:
        raise RunError(f"--cluster: {cluster} has several machines, but trials run on this one; plan for the others")
    size = options.num_processes or cluster.per_node
    return dataclasses.replace(cluster, per_node=size)


def _this_machine() -> str:
    """Devices of this machine, as ``--cluster`` takes them.

    Raises:
        RunError: if there is an accelerator that the table does not know.
    """
    import torch

    if not torch.cuda.is_available():
        return f"{len(os.sched_getaffinity(0))}xcpu"
    name, gigabytes = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory / 1e9
    known = ("H100", "H200", "B200", "MI300X", f"A100-{40 if gigabytes < 60 else 80}")
    for one in known:
        if one.partition("-")[0] in name:
            return f"{torch.cuda.device_count()}x{one}"
    raise RunError(f"--cluster: {name} is not in the hardware table; describe it in --hardware FILE and name it")


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v tune``."""
    parser = argparse.ArgumentParser(
        prog="d2v tune",
        description=_DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--num-processes", type=positive_int, help="default: one per accelerator, or per core")
    parser.add_argument("--cluster", metavar="GxNAME", help="this machine, e.g. 8xH100; default: what is found")
    parser.add_argument("--candidates", type=positive_int, default=6, help="layouts to measure; default: 6")
    parser.add_argument("--steps", type=positive_int, default=10, help="measured in the first round; default: 10")
    parser.add_argument(
        "--seconds", type=positive_float, default=600, help="longest that one trial may take; default: 600"
    )
    parser.add_argument("--minutes", type=positive_float, default=60, help="for everything; default: 60")
    parser.add_argument("--global-batch", type=positive_int, metavar="N", help="instead of the recipe's")
    parser.add_argument("--hardware", type=Path, metavar="FILE", help="YAML or JSON with devices, laid over the table")
    parser.add_argument("--config", type=Path, help="YAML laid over the recipe")
    parser.add_argument("--deepspeed", type=Path, help="your DeepSpeed JSON, which every trial starts from")
    parser.add_argument("--calibrate", action="store_true", help="fit the planner's constants: hardware.yaml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/tune-RECIPE")
    return parser
