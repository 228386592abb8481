"""``python -m docs.scaling``: write the planner's output into docs/planning.md, between its markers."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.plan.advice import advise
from deploy.plan.command import parser, read_problem
from deploy.plan.hardware import DEVICES, read_cluster
from deploy.plan.plan import Plan
from deploy.plan.problem import Problem
from deploy.plan.table import as_text, describe, figures
from pretrain.config import with_overrides
from pretrain.recipes.layouts import LAYOUTS
from pretrain.recipes.registry import recipe

PAGE = Path(__file__).with_name("planning.md")
SIZES = (128, 256, 512, 1024)


def command(text: str) -> str:
    """What ``d2v plan`` prints."""
    options, overrides = parser().parse_known_args(text.split())
    advice = advise(read_problem(options, overrides, {}), LAYOUTS.get(options.recipe))
    return f"$ d2v plan {text}\n{as_text(advice, options.top)}"


def scaling(name: str, per_device: int | None) -> str:
    """The fastest layout of a recipe on more and more H100, with its own batch or one that grows with them."""
    lines = [
        "| GPUs | batch | layout | memory | step | samples/s | MFU | GPU-hours | GB sent: dp | tp | pp |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in SIZES:
        config = recipe(name)
        if per_device is not None:
            config = with_overrides(config, [f"--training.global-batch-size={per_device * size}"])
        best = advise(Problem(config, read_cluster(f"{size // 8}x8xH100", DEVICES), recipe(name))).shown[0]
        lines.append(_row(size, best))
    return "\n".join(lines)


def _row(size: int, plan: Plan) -> str:
    sent = figures(plan)["bytes_sent"]
    cells = [
        f"{size:,}",
        f"{plan.config.training.global_batch_size:,}",
        describe(plan),
        f"{plan.memory_bytes / 1e9:.1f} GB",
        f"{plan.seconds.total:.3f} s",
        f"{plan.samples_per_second:,.0f}",
        f"{100 * plan.mfu:.1f} %",
        f"{plan.device_hours:,.0f}",
        *(f"{sent[group] / 1e9:.2f}" for group in ("dp", "tp", "pp")),
    ]
    return f"| {' | '.join(cells)} |"


BLOCKS: dict[str, Callable[[], str]] = {
    "plan": lambda: f"```\n{command('image-huge14 --cluster 4x8xA100-80 --top 6')}\n```",
    "small": lambda: f"```\n{command('image-7b --cluster 1x8xH100 --top 4')}\n```",
    "huge14": lambda: scaling("image-huge14", None),
    "huge14-growing": lambda: scaling("image-huge14", 8),
    "7b": lambda: scaling("image-7b", None),
    "7b-growing": lambda: scaling("image-7b", 8),
    "7b-1024": lambda: f"```\n{command('image-7b --cluster 128x8xH100 --top 12')}\n```",
}
"""What stands between ``<!-- NAME -->`` and ``<!-- end -->``."""


def filled(page: str) -> str:
    """A page with every block written anew."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{BLOCKS[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
