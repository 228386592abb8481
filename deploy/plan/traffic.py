"""What travels between the ranks in one step: arithmetic on a run's configuration and the grid of ranks. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deploy.plan.engine import SIZES, Dtype, Engine, is_bf16_optimizer
from deploy.plan.rank import Rank
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "reduce", "broadcast", "send", "receive"]
GroupName = Literal["dp", "tp", "pp", "model", "world"]
When = Literal["teacher", "forward", "backward", "step", "refresh"]
"""The teacher's pass; the student's; the engine's step; bringing the new average to the teacher, which is hidden behind
the next step's first passes."""


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Calls of one kind that one rank takes part in, in one step."""

    what: str
    """What is carried."""
    kind: Kind
    group: GroupName
    """Among which ranks."""
    dtype: Dtype
    num_bytes: int
    """Of all calls together: what is summed, sent, or whole after gathering or before scattering."""
    count: int
    """Calls."""
    when: When

    def wire_bytes(self, group_size: int) -> float:
        """Bytes that leave one rank, by the ring algorithms that NCCL and gloo use for large messages."""
        share = (group_size - 1) / group_size
        factors = {"all_reduce": 2 * share, "all_gather": share, "reduce_scatter": share, "receive": 0.0}
        factor = factors.get(self.kind, 1.0)
        return factor * self.num_bytes if group_size > 1 else 0.0


def group_size(grid: Grid, group: GroupName) -> int:
    """Ranks of a group."""
    sizes = {"dp": grid.dp_size, "tp": grid.tp_size, "pp": grid.pp_size}
    return sizes.get(group, grid.tp_size * grid.pp_size if group == "model" else grid.world_size)


def traffic_per_step(
    config: RunConfig, grid: Grid, pp_rank: int = 0, engine: Engine | None = None
) -> tuple[Collective, ...]:
    """All collectives of one step of one rank of a stage that carry tensors; groups of one rank have none.

    Args:
        config: the run.
        grid: from ``make_grid``.
        pp_rank: stage of the pipeline.
        engine: DeepSpeed's settings; None for those of a run without a user's JSON.
    """
    rank = Rank(config, grid, pp_rank)
    found = [*_of_engine(rank, engine or Engine()), *_of_teacher(rank), *_of_blocks(rank), *_of_stages(rank)]
    return tuple(one for one in found if group_size(grid, one.group) > 1 and one.num_bytes > 0)


def _of_engine(rank: Rank, engine: Engine) -> Iterator[Collective]:
    """Gradients and weights over the data-parallel ranks."""
    stage, dtype = rank.zero_stage, rank.weight_dtype
    accumulated: Dtype = "fp32" if is_bf16_optimizer(rank.parallel, rank.precision) else dtype
    numel = sum(map(rank.whole_numel, rank.groups))
    passes = rank.num_microbatches if stage > 1 else 1
    kind: Kind = "reduce_scatter" if stage == 3 else "all_reduce"
    yield _dp("gradients", kind, accumulated, numel, passes, "backward" if stage > 1 else "step")
    if stage in (1, 2):
        yield _dp("weights", "all_gather", dtype, numel, 1, "step")
    if stage == 3:
        large = sum(one.numel for group in rank.groups for one in group if not engine.keeps_whole(one))
        small = sum(one.numel for group in rank.groups for one in group if engine.keeps_whole(one))
        yield _dp("weights", "all_gather", dtype, large, rank.num_microbatches, "forward")
        yield _dp("small weights", "all_gather", dtype, small, 1, "step")


def _of_teacher(rank: Rank) -> Iterator[Collective]:
    """The average, in the precision that the teacher computes in."""
    numel = rank.whole_numel(rank.teachers)
    if not rank.parallel.gathers_teacher:
        yield _dp("teacher's weights", "all_gather", rank.dtype, numel, 1, "refresh")
        return
    kind: Kind = "all_gather" if rank.zero_stage == 3 else "broadcast"
    yield _dp("teacher's layers", kind, rank.dtype, numel, rank.num_microbatches, "teacher")


def _dp(what: str, kind: Kind, dtype: Dtype, numel: int, count: int, when: When) -> Collective:
    num_bytes = SIZES[dtype] * numel * count
    return Collective(what=what, kind=kind, group="dp", dtype=dtype, num_bytes=num_bytes, count=count, when=when)


def _of_blocks(rank: Rank) -> Iterator[Collective]:
    """Tensor parallelism: a sum after attention and one after the MLP, and as many for their inputs' gradients."""
    for one in rank.microbatches:
        blocks = len(rank.numbers) + (one.side.prenet_depth if rank.is_first else 0)
        student, teacher = rank.dim * one.student_tokens * one.number, rank.dim * one.teacher_tokens * one.number
        again = 1 if rank.parallel.recompute else 0
        yield _tp("teacher's blocks", rank.dtype, blocks * 2, teacher, one.number, "teacher")
        yield _tp("blocks", rank.dtype, blocks * 2, student, one.number, "forward")
        yield _tp("blocks' gradients", rank.dtype, blocks * 2 * (1 + again), student, one.number, "backward")


def _tp(what: str, dtype: Dtype, calls: int, numel: int, passes: int, when: When) -> Collective:
    num_bytes, count = SIZES[dtype] * numel * calls, calls * passes
    return Collective(
        what=what, kind="all_reduce", group="tp", dtype=dtype, num_bytes=num_bytes, count=count, when=when
    )


def _of_stages(rank: Rank) -> Iterator[Collective]:
    """Pipeline: hidden states go on and their gradients come back; the teacher's, and its running target."""
    for one in rank.microbatches:
        student = SIZES[rank.dtype] * rank.dim * one.student_tokens * one.number
        teacher = SIZES[rank.dtype] * rank.dim * one.teacher_tokens * one.number
        if not rank.is_last:
            yield _pp("teacher's hidden states", "send", rank.dtype, teacher, one.number, "teacher")
            yield _pp("hidden states", "send", rank.dtype, student, one.number, "forward")
            yield _pp("hidden states' gradients", "receive", rank.dtype, student, one.number, "backward")
        if not rank.is_first:
            yield _pp("teacher's hidden states", "receive", rank.dtype, teacher, one.number, "teacher")
            yield _pp("hidden states", "receive", rank.dtype, student, one.number, "forward")
            yield _pp("hidden states' gradients", "send", rank.dtype, student, one.number, "backward")
        total = SIZES["fp32"] * rank.dim * one.target_tokens * one.number
        first_averaged = rank.depth - one.side.target.top_k
        if not rank.is_last and first_averaged < rank.numbers.stop:
            yield _pp("running targets", "send", "fp32", total, one.number, "teacher")
        if not rank.is_first and first_averaged < rank.numbers.start:
            yield _pp("running targets", "receive", "fp32", total, one.number, "teacher")


def _pp(what: str, kind: Kind, dtype: Dtype, num_bytes: int, count: int, when: When) -> Collective:
    return Collective(what=what, kind=kind, group="pp", dtype=dtype, num_bytes=num_bytes, count=count, when=when)
