"""The recipes beyond the paper: sizes, how they divide, and that their layouts are legal, fit and are near the best."""

import re
from pathlib import Path

import pytest

from deploy.plan.advice import advise
from deploy.plan.hardware import DEVICES, read_cluster
from deploy.plan.problem import Problem
from model.accounting import num_parameters
from pretrain.parallel.grid import make_grid
from pretrain.recipes.layouts import LAYOUTS
from pretrain.recipes.registry import RECIPES, recipe
from tests.unit.pretrain.recipes.fields import fields

SIZES = {"image-1b": 1.03e9, "image-3b": 3.16e9, "image-7b": 7.27e9, "audio-1b": 1.04e9}
README = Path(__file__).resolve().parents[4] / "README.md"


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name: str) -> None:
    assert num_parameters(recipe(name).model) == pytest.approx(SIZES[name], rel=0.005)


@pytest.mark.parametrize("name", SIZES)
def test_heads_and_depth_divide(name: str) -> None:
    encoder = recipe(name).model.encoder
    assert encoder.dim // encoder.num_heads in (64, 128)
    assert encoder.num_heads % 8 == 0 and encoder.depth % 4 == 0


@pytest.mark.parametrize(
    ("name", "base", "changed"),
    [
        ("image-1b", "image-huge14", {"depth", "dim", "num_heads", "top_k", "lr", "global_batch_size"}),
        ("image-3b", "image-huge14", {"depth", "dim", "num_heads", "top_k", "lr", "global_batch_size"}),
        ("image-7b", "image-huge14", {"depth", "dim", "num_heads", "top_k", "lr", "global_batch_size"}),
        ("audio-1b", "audio-large", {"depth", "dim", "num_heads", "prenet_depth", "top_k", "lr", "global_batch_size"}),
    ],
)
def test_everything_else_is_that_of_the_largest_published(name: str, base: str, changed: set[str]) -> None:
    before, after = fields(recipe(base)), fields(recipe(name))
    differing = {key.rpartition(".")[2] for key in before if before[key] != after[key]}
    assert differing <= changed
    assert {"depth", "dim", "num_heads", "lr", "global_batch_size"} <= differing
    width = before["model.encoder.dim"] / after["model.encoder.dim"]
    assert after["optim.lr"] == pytest.approx(before["optim.lr"] * width, rel=0.02)


@pytest.mark.parametrize("name", [*SIZES, "image-huge16", "image-huge14"])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 8, 32])
def test_the_recipe_itself_starts_on_any_number_of_processes(name: str, num_processes: int) -> None:
    config = recipe(name)
    assert make_grid(config.parallel, config.model, num_processes).dp_size == num_processes


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_fit_and_are_near_the_best(name: str) -> None:
    """Legal (or ``advise`` raises), with a tenth of the memory to spare, within 15 % of the fastest."""
    cluster = read_cluster(LAYOUTS[name].cluster, DEVICES)
    advice = advise(Problem(recipe(name), cluster, recipe(name)), LAYOUTS[name])
    assert advice.own is not None
    assert advice.own.spare_bytes > 0.1e9 * cluster.device.memory_gb
    assert advice.own.samples_per_second > 0.85 * advice.shown[0].samples_per_second


def test_every_large_recipe_has_a_layout() -> None:
    """From 600 M parameters on; smaller ones need none."""
    large = {name for name, make in RECIPES.items() if num_parameters(make().model) > 6e8}
    assert large == LAYOUTS.keys()


def test_readme_lists_every_recipe_with_its_size() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([\d.]+) ([MB]) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _, _ in rows} == RECIPES.keys()
    for name, number, unit in rows:
        digits = 0 if "." not in number else 1
        count = num_parameters(recipe(name).model) / {"M": 1e6, "B": 1e9}[unit]
        assert round(count, digits) == float(number), name
