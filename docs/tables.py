"""Bytes, traffic and legality of layouts as rows of text, for a terminal or a page. No torch."""

from collections.abc import Iterable, Sequence

from deploy.plan.collective import Collective, group_size
from deploy.plan.memory import StateBytes, host_bytes, state_bytes
from deploy.plan.traffic import traffic_per_step
from pretrain.config import RunConfig, with_overrides
from pretrain.errors import RunError
from pretrain.parallel.grid import Grid, make_grid

Row = list[str]
BYTES_HEAD: Row = [
    "layout",
    "weights",
    "gradients",
    "optimizer",
    "teacher, fp32",
    "teacher, computing",
    "buffers",
    "together",
    "in host memory",
]
TRAFFIC_HEAD: Row = ["layout", "tensor parallel", "pipeline", "gradients", "weights", "teacher", "calls"]


def laid_out(config: RunConfig, layout: str, world_size: int) -> tuple[RunConfig, Grid]:
    """A run at a layout.

    Args:
        config: the run.
        layout: fields of the section ``parallel`` as on the command line, ``--parallel.`` left out:
            ``tp-size 2 zero-stage 3``.
        world_size: processes.
    Raises:
        RunError: if the layout is not legal, from whoever refuses it.
    """
    words = layout.split()
    arguments = [
        word for name, value in zip(words[::2], words[1::2], strict=True) for word in (f"--parallel.{name}", value)
    ]
    config = with_overrides(config, arguments)
    grid = make_grid(config.parallel, config.model, world_size)
    for modality in config.model.modalities:
        config.microbatches(modality, grid.dp_size)
    return config, grid


def bytes_rows(config: RunConfig, layouts: Iterable[str], world_size: int) -> list[Row]:
    """What the fullest rank of each layout holds, columns of ``BYTES_HEAD``, in GB (1e9 bytes)."""
    rows = []
    for layout in layouts:
        run, grid = laid_out(config, layout, world_size)
        stages = range(grid.pp_size)
        fullest = max(
            stages, key=lambda stage: state_bytes(run, grid, stage).total + host_bytes(run, grid, stage).total
        )
        device, host = state_bytes(run, grid, fullest), host_bytes(run, grid, fullest)
        rows.append([layout, *_amounts(device), _gigabytes(host.total)])
    return rows


def _amounts(held: StateBytes) -> Row:
    weights = _gigabytes(held.weights)
    if held.gathered_weights:
        weights += f" + {_gigabytes(held.gathered_weights)}"
    others = (held.gradients, held.optimizer, held.teacher_shard, held.teacher_weights, held.buffers, held.total)
    return [weights, *map(_gigabytes, others)]


def traffic_rows(config: RunConfig, layouts: Iterable[str], world_size: int) -> list[Row]:
    """What leaves the busiest rank of each layout in a step, columns of ``TRAFFIC_HEAD``, in GB (1e9 bytes)."""
    rows = []
    for layout in layouts:
        run, grid = laid_out(config, layout, world_size)
        stages = [traffic_per_step(run, grid, stage) for stage in range(grid.pp_size)]
        busiest = max(stages, key=lambda found: _leaving(found, grid))
        kinds = [
            [one for one in busiest if one.group == "tp"],
            [one for one in busiest if one.group == "pp"],
            [one for one in busiest if one.group == "dp" and one.what == "gradients"],
            [one for one in busiest if one.group == "dp" and one.what == "weights"],
            [one for one in busiest if one.group == "dp" and one.what.startswith("teacher")],
        ]
        calls = sum(one.count for one in busiest)
        rows.append([layout, *(_gigabytes(_leaving(kind, grid)) for kind in kinds), str(calls)])
    return rows


def _leaving(collectives: Iterable[Collective], grid: Grid) -> float:
    return sum(one.wire_bytes(group_size(grid, one.group)) for one in collectives)


def refusal(config: RunConfig, layout: str, world_size: int) -> str | None:
    """Why a layout is not legal; None if it is."""
    try:
        laid_out(config, layout, world_size)
    except RunError as error:
        return str(error)
    return None


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, the first column of which is text."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows)) + "\n"


def _gigabytes(num_bytes: float) -> str:
    return "-" if not num_bytes else f"{num_bytes / 1e9:.3f}"
