"""What DeepSpeed (0.19.8) sends: gradients and weights over the data-parallel ranks, norms over all. No torch.

As it really does: a gradient travels in the precision of the weights, also where it is accumulated in fp32; stage 2
sums whole gradients in every microbatch, and keeps a part; the weights come back by one collective per group.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from deploy.plan.collective import Collective, GroupName, When
from deploy.plan.engine import SIZES, Dtype, Engine, is_bf16_optimizer
from deploy.plan.rank import Group, Rank
from model.inventory import Parameter

_Gradients = partial(Collective, what="gradients", group="dp")
_Weights = partial(Collective, what="weights", kind="all_gather", group="dp")


def engine_traffic(rank: Rank, engine: Engine) -> Iterator[Collective]:
    """All of a step."""
    if rank.zero_stage == 3:
        yield from _split(rank, engine)
    else:
        yield from _flat(rank, engine)
    yield from _norms(rank, engine)


def _flat(rank: Rank, engine: Engine) -> Iterator[Collective]:
    """Stages 0 to 2."""
    dtype, whole = rank.weight_dtype, sum(map(rank.whole_numel, rank.groups))
    size, limit = SIZES[dtype], engine.reduce_bucket_size
    if rank.zero_stage == 2:
        for one in rank.microbatches:
            numels = [parameter.numel for parameter in rank.used(one.modality)]
            calls, num_bytes = one.number * num_buckets(numels, limit), one.number * size * sum(numels)
            yield _Gradients(kind="all_reduce", dtype=dtype, num_bytes=num_bytes, count=calls, when="backward")
    elif is_bf16_optimizer(rank.parallel, rank.precision):  # flat buffers, padding and all
        count = num_buckets([rank.whole_numel(group) for group in rank.groups], limit)
        yield _Gradients(kind="all_reduce", dtype=dtype, num_bytes=size * whole, count=count, when="step")
    else:
        count = num_buckets([one.numel for group in rank.groups for one in group], limit)
        yield _Gradients(kind="all_reduce", dtype=dtype, num_bytes=size * rank.numel, count=count, when="step")
    if rank.zero_stage > 0:
        yield _Weights(dtype=dtype, num_bytes=size * whole, count=len(rank.groups), when="step")


def _split(rank: Rank, engine: Engine) -> Iterator[Collective]:
    """Stage 3: weights before the passes that need them, gradients after each; small weights after the step."""
    dtype, size = rank.weight_dtype, SIZES[rank.weight_dtype]
    several = len(rank.microbatches) > 1
    small = [one for group in rank.groups for one in group if engine.keeps_whole(one)]
    for one in rank.microbatches:
        used = rank.used(one.modality)
        large = [parameter for parameter in used if not engine.keeps_whole(parameter)]
        # of several modalities DeepSpeed expects no order: it lets go of small weights too
        passes: list[tuple[list[Parameter], When]] = [
            (used if several else large, "forward"),
            (used if several else fetched_again(rank, engine, large), "backward"),
        ]
        for fetched, when in passes:
            count = one.number * _num_fetches(fetched, engine)
            yield _Weights(dtype=dtype, num_bytes=one.number * size * padded(rank, fetched), count=count, when=when)
        count = one.number * num_buckets([parameter.numel for parameter in used], engine.reduce_bucket_size)
        num_bytes = one.number * size * padded(rank, used)
        yield _Gradients(kind="reduce_scatter", dtype=dtype, num_bytes=num_bytes, count=count, when="backward")
    yield _Weights(dtype=dtype, num_bytes=size * padded(rank, small), count=len(small), when="step")


def fetched_again(rank: Rank, engine: Engine, large: Sequence[Parameter]) -> list[Parameter]:
    """Weights that stage 3 lets go of in the forward pass, because so much lies between it and the backward pass.

    Of several modalities DeepSpeed expects no order, and lets go of all of them.
    """
    if len(rank.microbatches) > 1:
        return list(large)
    if sum(one.numel for one in large) <= engine.stage3_prefetch_bucket_size:
        return []  # all is fetched ahead at once, and kept
    after, again = 0, []
    for one in reversed(large):
        if 2 * after >= engine.stage3_max_reuse_distance:
            again.append(one)
        after += one.numel
    return again


def _num_fetches(parameters: Sequence[Parameter], engine: Engine) -> int:
    """Calls: one per weight, or of about as many as are fetched ahead."""
    return num_buckets([one.numel for one in parameters], engine.stage3_prefetch_bucket_size)


def padded(rank: Rank, parameters: Sequence[Parameter]) -> int:
    """Elements of whole parameters after all ranks' equal parts were joined."""
    return rank.grid.dp_size * rank.shard_numel(Group(parameters))


def num_buckets(numels: Sequence[int], limit: int) -> int:
    """Runs of tensors, in order, of at most ``limit`` elements each; a larger tensor is one by itself."""
    count, filled = 0, limit + 1
    for numel in numels:
        if filled + numel > limit:
            count, filled = count + 1, 0
        filled += numel
    return count


def _norms(rank: Rank, engine: Engine) -> Iterator[Collective]:
    """The gradient's norm, group by group, and whether it is finite: single numbers, which cost waiting only."""
    scalar = partial(Collective, kind="all_reduce", when="step")
    if rank.zero_stage == 0:
        if any(one.is_cut for group in rank.groups for one in group):
            yield scalar(what="norm", group="tp", dtype="fp32", num_bytes=4, count=1)
        return
    if is_bf16_optimizer(rank.parallel, rank.precision):  # every rank has all gradients of its part
        yield scalar(what="norm", group="model", dtype="fp32", num_bytes=4, count=1)
        return
    dtype: Dtype = "fp64" if rank.zero_stage == 3 and rank.parallel.offload == "none" else "fp32"
    count = len(rank.groups)
    if rank.zero_stage == 3:
        limit = engine.sub_group_size
        count = sum(num_buckets([one.numel for one in members], limit) for members in rank.groups)
    both: tuple[GroupName, ...] = ("dp", "model")
    for group in both:
        yield scalar(what="norm", group=group, dtype=dtype, num_bytes=SIZES[dtype] * count, count=count)
    if rank.zero_stage < 3 and rank.weight_dtype == "bf16":
        for group in both:
            yield scalar(what="overflow", group=group, dtype="uint8", num_bytes=1, count=1)
