"""Where every byte of a run's state lives: arithmetic on its configuration and the grid of ranks. No torch.

Activations are elsewhere; this is what is there whatever the batch: weights, gradients, optimizer, teacher.
"""

import itertools
from dataclasses import dataclass

from deploy.plan.engine import SIZES, Engine, is_bf16_optimizer
from deploy.plan.engine_traffic import fetched_again, padded
from deploy.plan.model_traffic import scale_numels
from deploy.plan.rank import Rank
from deploy.plan.teacher_layers import layers_of
from model.inventory import Parameter
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid

FP32 = SIZES["fp32"]


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes of one rank by what they hold."""

    weights: int = 0
    """Weights that the student computes with, between steps."""
    gathered_weights: int = 0
    """Weights that stage 3 makes whole beside them while it computes, at most."""
    gradients: int = 0
    """Between the last backward pass and the step."""
    optimizer: int = 0
    """fp32 master weights (at stage 0 they are the weights) and AdamW's two moments."""
    teacher_shard: int = 0
    """The fp32 average."""
    teacher_weights: int = 0
    """Weights that the teacher computes with, at most."""
    buffers: int = 0
    """Fixed tables of both networks, and what DeepSpeed keeps for itself."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


def state_bytes(config: RunConfig, grid: Grid, pp_rank: int = 0, engine: Engine | None = None) -> StateBytes:
    """State in device memory of every rank of one stage: data-parallel and tensor-parallel ranks hold equal amounts.

    Args:
        config: the run.
        grid: from ``make_grid``, which has refused what is not legal.
        pp_rank: stage of the pipeline.
        engine: DeepSpeed's settings; None for those of a run without a user's JSON.
    """
    rank, settings = Rank(config, grid, pp_rank), engine or Engine()
    offloads = config.parallel.offload == "optimizer"
    return StateBytes(
        weights=_weights(rank, settings),
        gathered_weights=_gathered_weights(rank, settings),
        gradients=_gradients(rank),
        optimizer=0 if offloads else _optimizer(rank),
        teacher_shard=0 if offloads else FP32 * rank.shard_numel(rank.teachers),
        teacher_weights=_teacher_weights(rank),
        buffers=_tables(rank) + _bucket(rank, settings) + (_largest(rank) if offloads else 0),
    )


def host_bytes(config: RunConfig, grid: Grid, pp_rank: int = 0) -> StateBytes:
    """The same in host memory: nothing unless ``parallel.offload`` moves it there."""
    if config.parallel.offload == "none":
        return StateBytes()
    rank = Rank(config, grid, pp_rank)
    owned = sum(map(rank.shard_numel, rank.groups))
    is_split = rank.zero_stage == 3
    return StateBytes(
        gradients=FP32 * owned * (2 if is_split else 1),  # what the optimizer reads; at stage 3 also what accumulates
        optimizer=_optimizer(rank),
        teacher_shard=FP32 * rank.shard_numel(rank.teachers),
        buffers=0 if is_split else SIZES[rank.weight_dtype] * owned + _largest(rank),
    )


def _weights(rank: Rank, engine: Engine) -> int:
    if rank.zero_stage < 3:
        return SIZES[rank.weight_dtype] * sum(map(rank.whole_numel, rank.groups))
    small = sum(one.numel for group in rank.groups for one in group if engine.keeps_whole(one))
    return SIZES[rank.weight_dtype] * (sum(map(rank.shard_numel, rank.groups)) + small)


def _gathered_weights(rank: Rank, engine: Engine) -> int:
    """At the end of the forward pass: what is not fetched again for the backward pass, and what is fetched ahead."""
    if rank.zero_stage < 3:
        return 0
    most = 0
    for one in rank.microbatches:
        large = [parameter for parameter in rank.used(one.modality) if not engine.keeps_whole(parameter)]
        again = fetched_again(rank, engine, large)
        kept = padded(rank, large) - padded(rank, again)
        ahead = max(engine.stage3_prefetch_bucket_size, max((parameter.numel for parameter in again), default=0))
        most = max(most, kept + min(ahead, padded(rank, again)))
    return SIZES[rank.weight_dtype] * most


def _gradients(rank: Rank) -> int:
    owned = sum(map(rank.shard_numel, rank.groups))
    if is_bf16_optimizer(rank.parallel, rank.precision):  # whole in both precisions
        return FP32 * sum(map(rank.whole_numel, rank.groups)) + SIZES[rank.dtype] * rank.numel
    if rank.zero_stage < 2:
        return FP32 * rank.numel
    is_on_host = rank.zero_stage == 3 and rank.parallel.offload == "optimizer"
    return 0 if is_on_host else FP32 * owned


def _optimizer(rank: Rank) -> int:
    if rank.zero_stage == 0:
        return 2 * FP32 * rank.numel
    return 3 * FP32 * sum(map(rank.shard_numel, rank.groups))


def _teacher_weights(rank: Rank) -> int:
    size = SIZES[rank.dtype]
    if not rank.parallel.gathers_teacher:
        is_flat = rank.zero_stage < 3
        return size * (rank.grid.dp_size * rank.shard_numel(rank.teachers) if is_flat else _numel(rank.teachers))
    layers, kept = layers_of(rank, rank.teachers)
    pairs = [one.numel + other.numel for one, other in itertools.pairwise(layers)]
    return size * (kept.numel + max(pairs, default=layers[0].numel))


def _tables(rank: Rank) -> int:
    """Fixed positions of images, of the student's frontend and decoder and of the teacher's frontend; in later stages
    of a pipeline ALiBi's scales.
    """
    scales = 0 if rank.is_first else FP32 * sum(scale_numels(rank))
    image = rank.config.model.image
    if image is None:
        return scales
    student = rank.is_first + (rank.is_last and image.decoder.add_positions != "none")
    teacher = rank.is_first and image.teacher_scope != "encoder"
    table = image.num_tokens * rank.dim
    return scales + table * (SIZES[rank.weight_dtype] * student + SIZES[rank.dtype] * teacher)


def _bucket(rank: Rank, engine: Engine) -> int:
    """Where gradients are put together to be reduced: whole, however small the model is. At stage 1 from the first
    backward pass to the step, at stage 2 during backward passes, at stage 3 always.
    """
    if rank.zero_stage == 0 or is_bf16_optimizer(rank.parallel, rank.precision):
        return 0
    return engine.reduce_bucket_size * (FP32 if rank.zero_stage == 1 else SIZES[rank.weight_dtype])


def _largest(rank: Rank) -> int:
    """Buffers of offloading, through which one parameter's gradient passes: one on the device, one on the host."""
    if rank.zero_stage == 3:
        return 0
    return SIZES[rank.weight_dtype] * max(one.numel for group in rank.groups for one in group)


def _numel(parameters: list[Parameter]) -> int:
    return sum(one.numel for one in parameters)
