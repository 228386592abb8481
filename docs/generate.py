"""Write the tables and pictures of docs/parallelism.md: ``python -m docs.generate`` in the repository."""

import re
from collections.abc import Callable
from pathlib import Path

from deploy.plan.memory import state_bytes
from docs.pictures import bytes_bars, rank_grid, stages
from docs.tables import BYTES_HEAD, TRAFFIC_HEAD, bytes_rows, laid_out, markdown, refusal, traffic_rows
from pretrain.config import RunConfig, with_overrides
from pretrain.parallel.grid import Grid
from pretrain.recipes.registry import recipe

PAGE = Path(__file__).with_name("parallelism.md")
WORLD_SIZE = 8
LAYOUTS = (
    "zero-stage 0",
    "zero-stage 1",
    "zero-stage 1 teacher gathered",
    "zero-stage 1 offload optimizer",
    "zero-stage 2",
    "zero-stage 3",
    "zero-stage 3 teacher resident",
    "tp-size 2",
    "tp-size 4 sequence-parallel true",
    "tp-size 2 zero-stage 3",
    "pp-size 2",
    "tp-size 2 pp-size 2",
)
ILLEGAL = (
    ("image-base", "tp-size 3"),
    ("image-base", "tp-size 8"),
    ("image-base", "pp-size 3"),
    ("image-base", "pp-size 2 zero-stage 0"),
    ("image-base", "pp-size 2 zero-stage 2"),
    ("image-base", "pp-size 2 zero-stage 3"),
    ("image-base", "sequence-parallel true"),
    ("audio-base", "tp-size 4 pp-size 4"),
)
"""Recipe and layout."""


def run_of(name: str) -> RunConfig:
    """A recipe with the microbatch that its authors gave one device."""
    size = {"image-base": 16, "image-huge14": 8}[name]
    return with_overrides(recipe(name), [f"--training.microbatch-size={size}"])


def bytes_table(name: str) -> str:
    """Where the bytes lie."""
    return markdown(BYTES_HEAD, bytes_rows(run_of(name), LAYOUTS, WORLD_SIZE))


def traffic_table(name: str) -> str:
    """What travels."""
    return markdown(TRAFFIC_HEAD, traffic_rows(run_of(name), LAYOUTS, WORLD_SIZE))


def illegal_table() -> str:
    """What is refused, and with which words."""
    rows = [[f"`{name}`, `{layout}`", refusal(recipe(name), layout, WORLD_SIZE) or ""] for name, layout in ILLEGAL]
    return markdown(["on 8 processes", "what the run says"], rows).replace("---:", "---")


TABLES: dict[str, Callable[[], str]] = {
    "bytes image-base": lambda: bytes_table("image-base"),
    "bytes image-huge14": lambda: bytes_table("image-huge14"),
    "traffic image-base": lambda: traffic_table("image-base"),
    "traffic image-huge14": lambda: traffic_table("image-huge14"),
    "illegal": illegal_table,
}


def huge_bars() -> str:
    """The fullest device of every layout."""
    held = {}
    for layout in LAYOUTS:
        config, grid = laid_out(run_of("image-huge14"), layout, WORLD_SIZE)
        held[layout] = max(
            (state_bytes(config, grid, stage) for stage in range(grid.pp_size)), key=lambda one: one.total
        )
    return bytes_bars("image-huge14 on 8 devices: bytes of state on the fullest", held)


PICTURES: dict[str, Callable[[], str]] = {
    "rank-grid.svg": lambda: rank_grid(Grid(WORLD_SIZE, 2, 2)),
    "stages.svg": lambda: stages(2, 4),
    "state-bytes.svg": huge_bars,
}


def filled(page: str) -> str:
    """The page with every table computed anew."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([^>]+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    """Write page and pictures."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for name, draw in PICTURES.items():
        PAGE.with_name(name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
