"""What travels between the ranks in one step: arithmetic on a run's configuration and the grid of ranks. No torch.

Reports and checkpoints, which come every so many steps, are left out.
"""

from collections.abc import Iterator
from functools import partial

from deploy.plan.collective import Collective, Kind, group_size
from deploy.plan.engine import SIZES, Engine
from deploy.plan.engine_traffic import engine_traffic, padded
from deploy.plan.model_traffic import stage_traffic, tensor_traffic
from deploy.plan.rank import Rank
from deploy.plan.teacher_layers import layers_of
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid

TERMS, AMOUNTS = 3, 5
"""Loss terms of a modality that are counted, and measures of what a step processes."""


def traffic_per_step(
    config: RunConfig, grid: Grid, pp_rank: int = 0, engine: Engine | None = None
) -> tuple[Collective, ...]:
    """All collectives of one step of one rank of a stage; groups of one rank have none.

    Args:
        config: the run.
        grid: from ``make_grid``.
        pp_rank: stage of the pipeline.
        engine: DeepSpeed's settings; None for those of a run without a user's JSON.
    """
    rank = Rank(config, grid, pp_rank)
    found = [
        *_control(rank),
        *_teacher(rank),
        *(tensor_traffic(rank) if grid.tp_size > 1 else ()),
        *(stage_traffic(rank) if grid.pp_size > 1 else ()),
        *engine_traffic(rank, engine or Engine()),
    ]
    return tuple(one for one in found if group_size(grid, one.group) > 1 and one.num_bytes > 0)


def _control(rank: Rank) -> Iterator[Collective]:
    """Counts of the loss terms and of what the step processes, and whether to stop, in host memory."""
    numbers = 1 + TERMS * len(rank.microbatches) + AMOUNTS
    yield Collective(
        what="counts",
        kind="all_reduce",
        group="world",
        dtype="fp64",
        num_bytes=SIZES["fp64"] * numbers,
        count=1,
        when="batch",
    )


def _teacher(rank: Rank) -> Iterator[Collective]:
    """The average, in the precision that the teacher computes in."""
    size, is_split = SIZES[rank.dtype], rank.zero_stage == 3
    moved = partial(Collective, group="dp", dtype=rank.dtype)
    if not rank.parallel.gathers_teacher:
        whole = padded(rank, rank.teachers)
        yield moved(what="teacher's weights", kind="all_gather", num_bytes=size * whole, count=1, when="refresh")
        return
    kind: Kind = "all_gather" if is_split else "broadcast"
    layers, kept = layers_of(rank, rank.teachers)
    if kept.numel:
        yield moved(
            what="teacher's small weights", kind=kind, num_bytes=size * kept.numel, count=kept.calls, when="refresh"
        )
    for one in rank.microbatches:
        names = {parameter.name for parameter in rank.used(one.modality)}
        run = [layer for layer in layers if layer.names <= names]
        yield moved(
            what="teacher's layers",
            kind=kind,
            num_bytes=one.number * size * sum(layer.numel for layer in run),
            count=one.number * sum(layer.calls for layer in run),
            when="teacher",
        )
