"""What the pages tell a user to type: read by the real parsers, with real recipes, fields, layouts and paths."""

import argparse
import functools
import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from deploy.cli import COMMANDS
from deploy.launch.command import KINDS
from pretrain.config import with_overrides
from pretrain.recipes.registry import RECIPES, recipe
from pretrain.request import lay_out

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
_CODE = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"^ *```")


class Command(NamedTuple):
    """A command of ``d2v`` as a page has it."""

    place: str
    """PAGE:LINE."""
    arguments: list[str]
    """Of ``d2v``."""
    num_processes: int
    """That the launcher before it starts; 1 if there is none."""


def lines_of_code(text: str) -> Iterator[tuple[int, str]]:
    """Whole lines of fenced and of indented blocks with their numbers, those that end in a backslash joined."""
    fenced, begun, start = False, "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            begun, start = begun + line.strip().removeprefix("$ "), start or number
            if begun.endswith("\\"):
                begun = begun[:-1]
                continue
            yield start, begun
            begun, start = "", 0


def read(line: str) -> tuple[list[str], int] | None:
    """Arguments of ``d2v`` in a line, and how many processes its launcher starts; None if it is another line."""
    if not re.match(r"(d2v|torchrun|deepspeed|srun) ", line):
        return None
    words = shlex.split(line, comments=True)
    if "d2v" in words:
        before, after = words[: words.index("d2v")], words[words.index("d2v") + 1 :]
    elif "deploy.cli" in words:
        before, after = words[: words.index("deploy.cli")], words[words.index("deploy.cli") + 1 :]
    else:
        return None
    counts = re.findall(r"--(?:nproc-per-node|num_gpus|nodes|ntasks-per-node)[ =](\d+)", " ".join(before))
    size = 1
    for count in counts:
        size *= int(count)
    return after, size


COMMANDS_OF_PAGES = [
    Command(f"{page}:{number}", *found)
    for page, text in PAGES.items()
    for number, line in lines_of_code(text)
    if (found := read(line)) is not None
]


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the command's own parser makes of its arguments, and what it leaves for the configuration."""
    name, *rest = words
    module = COMMANDS[name][0]
    if name == "launch":
        kind, *rest = rest
        module = KINDS[kind][0]
    parser: argparse.ArgumentParser = importlib.import_module(module).parser()
    options, overrides = parser.parse_known_args(rest)
    return options, overrides


def test_there_is_something_to_read() -> None:
    places = {one.place.partition(":")[0] for one in COMMANDS_OF_PAGES}
    assert {"README.md", "docs/slurm.md", "docs/parallelism.md", "docs/planning.md", "docs/converting.md"} <= places
    assert len(COMMANDS_OF_PAGES) > 40
    assert any(one.num_processes == 16 for one in COMMANDS_OF_PAGES)


@pytest.mark.parametrize("command", COMMANDS_OF_PAGES, ids=lambda one: one.place)
def test_a_command_is_read_by_its_parser(command: Command) -> None:
    options, overrides = parse(command.arguments)
    name = getattr(options, "recipe", None)
    if name is None:
        assert overrides == []
        return
    config = with_overrides(recipe(name), overrides)
    processes = command.num_processes
    if command.arguments[0] == "launch":
        processes = getattr(options, "num_processes", 0) or getattr(options, "nodes", 0) * int(options.gpus_per_node)
        processes = processes or 2 * options.gpus_per_node  # a hostfile of two
    if command.arguments[0] in ("train", "launch"):
        lay_out(config, processes, None)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_in_passing_exists(page: str) -> None:
    """Commands, fields and files between backticks in the text, which need not be complete commands."""
    for code in _CODE.findall(PAGES[page]):
        if code.startswith("d2v ") and re.fullmatch(r"[a-z]+", code.split()[1]):
            assert code.split()[1] in COMMANDS, code
        if match := re.fullmatch(r"--([a-z-]+(?:\.[a-z-]+)+)(?: ([^A-Z ]+))?", code):
            _check_field(match[1], match[2])
        if re.fullmatch(r"(?:model|data_pipelines|pretrain|deploy|tests|docs|benchmarks)/[\w./-]+", code):
            assert (ROOT / code).exists(), code
        if re.fullmatch(r"(image|audio|text|multimodal)-[a-z\d-]+", code):
            assert code in RECIPES, code


def _check_field(field: str, value: str | None) -> None:
    """See that there is such a field, and that it takes the value."""
    config = recipe("multimodal-base")
    functools.reduce(getattr, field.replace("-", "_").split("."), config)
    if value is not None:
        with_overrides(config, [f"--{field}", value])
