"""``d2v plan``: which layouts of a recipe fit a cluster, what each takes, the files that start the best. No torch."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from data_pipelines.atomic import replacing
from deploy.arguments import positive_int
from deploy.plan.advice import advise
from deploy.plan.hardware import DEVICES, read_cluster, read_devices
from deploy.plan.plan import Plan
from deploy.plan.problem import Problem
from deploy.plan.table import as_json, as_text
from pretrain.config import RunConfig, from_yaml, with_overrides
from pretrain.errors import RunError
from pretrain.parallel.deepspeed_config import read_user_json
from pretrain.recipes.layouts import LAYOUTS
from pretrain.recipes.registry import RECIPES, recipe
from pretrain.request import lay_out

_DESCRIPTION = """\
Find the layouts (tensor, pipeline, data parallel, ZeRO stage, microbatch) that fit a cluster, with the memory and the
time that each takes. Any field of the recipe can be set with --section.field VALUE; of --parallel only layouts with
that value are looked at."""


def main(argv: list[str]) -> int:
    """Run ``d2v plan``.

    Returns:
        0 if a layout fits, else 1.
    Raises:
        RunError, DataError, ConfigError: for bad input.
    """
    options, overrides = parser().parse_known_args(argv)
    user = read_user_json(options.deepspeed) if options.deepspeed else {}
    problem = read_problem(options, overrides, user)
    advice = advise(problem, LAYOUTS.get(options.recipe))
    if options.json:
        print(json.dumps(as_json(advice, options.top), indent=2))
    else:
        print(as_text(advice, options.top))
    if not advice.shown:
        return 1
    if options.out:
        if options.choose > len(advice.shown):
            raise RunError(f"--choose: {options.choose}, but {len(advice.shown)} layouts fit")
        write(options.out, advice.shown[options.choose - 1], user)
        if not options.json:
            print(
                f"\nwritten to {options.out}: deepspeed.json, flags.txt; start it on every device with\n  "
                f"d2v train {options.recipe} --deepspeed {options.out}/deepspeed.json $(cat {options.out}/flags.txt)"
            )
    return 0


def read_problem(options: argparse.Namespace, overrides: list[str], user: dict[str, Any]) -> Problem:
    """What the arguments ask for.

    Raises:
        RunError: if they are wrong.
    """
    layout = LAYOUTS.get(options.recipe)
    config, pinned = pinned_json(read_config(options, overrides), read_pinned(overrides), user)
    if options.cluster is None and layout is None:
        raise RunError("--cluster: which machines? e.g. 4x8xH200 (4 machines, 8 devices each), 8xA100-80 or 2xcpu")
    cluster = read_cluster(options.cluster or layout.cluster, read_devices(options.hardware))  # type: ignore[union-attr]
    return Problem(config, cluster, recipe(options.recipe), user, pinned)


def read_config(options: argparse.Namespace, overrides: list[str]) -> RunConfig:
    """The recipe with ``--config``, ``--section.field`` and ``--global-batch`` laid over it.

    Raises:
        RunError: if one of them is wrong.
    """
    config = recipe(options.recipe)
    if options.config:
        try:
            text = options.config.read_text(encoding="utf-8")
        except OSError as error:
            raise RunError(f"--config {options.config}: {error.strerror}") from error
        config = from_yaml(text, str(options.config), config)
    batch = [f"--training.global-batch-size={options.global_batch}"] if options.global_batch else []
    return with_overrides(config, [*overrides, *batch])


def read_pinned(overrides: list[str]) -> frozenset[str]:
    """Fields of ``parallel`` that the arguments set."""
    names = [flag[2:].partition("=")[0].replace("-", "_") for flag in overrides if flag.startswith("--parallel.")]
    return frozenset(name.removeprefix("parallel.") for name in names)


def pinned_json(config: RunConfig, pinned: frozenset[str], user: dict[str, Any]) -> tuple[RunConfig, frozenset[str]]:
    """What a user's DeepSpeed JSON decides of the layout, unless an argument does: its stage, and its offloading."""
    section = user.get("zero_optimization", {})
    found = {}
    if "stage" in section:
        found["zero_stage"] = section["stage"]
    if section.get("offload_optimizer", {}).get("device") == "cpu":
        found["offload"] = "optimizer"
    found = {name: value for name, value in found.items() if name not in pinned}
    if not found:
        return config, pinned
    arguments = [f"--parallel.{name.replace('_', '-')}={value}" for name, value in found.items()]
    return with_overrides(config, arguments), pinned | found.keys()


def flags(plan: Plan) -> list[str]:
    """Arguments of ``d2v train`` that make a layout."""
    section, training = dataclasses.asdict(plan.config.parallel), plan.config.training
    values = {f"parallel.{name}": value for name, value in section.items() if name != "timeout_seconds"}
    values |= {"training.global_batch_size": training.global_batch_size}
    made = [f"--{name.replace('_', '-')}={str(value).lower()}" for name, value in values.items()]
    if training.microbatch_size is not None:
        made.append(f"--training.microbatch-size={training.microbatch_size}")
    return made


def write(out: Path, plan: Plan, user: dict[str, Any]) -> None:
    """Write ``deepspeed.json`` and ``flags.txt``, one argument per line."""
    _, settings = lay_out(plan.config, plan.grid.world_size, user)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("deepspeed.json", json.dumps(settings, indent=2)), ("flags.txt", "\n".join(flags(plan)))):
        with replacing(out / name) as stream:
            stream.write(text.encode() + b"\n")


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v plan``."""
    parser = argparse.ArgumentParser(
        prog="d2v plan",
        description=_DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument(
        "--cluster",
        metavar="NxGxNAME",
        help=f"machines x devices each x device, e.g. 4x8xH200; known: {', '.join(DEVICES)}; default: that of the "
        "recipe's own layout, if it has one",
    )
    parser.add_argument("--global-batch", type=positive_int, metavar="N", help="instead of the recipe's")
    parser.add_argument("--hardware", type=Path, metavar="FILE", help="YAML or JSON with devices, laid over the table")
    parser.add_argument("--config", type=Path, help="YAML laid over the recipe")
    parser.add_argument("--deepspeed", type=Path, help="DeepSpeed JSON laid over the generated one")
    parser.add_argument("--top", type=positive_int, default=10, help="layouts to show; default: 10")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write deepspeed.json and flags.txt of the chosen layout"
    )
    parser.add_argument(
        "--choose", type=positive_int, default=1, metavar="N", help="number of the layout that is written; default: 1"
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    return parser
