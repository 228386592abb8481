"""Where every byte of a run's state lives: arithmetic on its configuration and the grid of ranks. No torch.

Activations are elsewhere; this is what is there whatever the batch: weights, gradients, optimizer, teacher.
"""

from dataclasses import dataclass, fields

from deploy.plan.engine import SIZES, Engine, is_bf16_optimizer
from deploy.plan.rank import Rank
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
        return sum(getattr(self, field.name) for field in fields(self))


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
        buffers=_buffers(rank),
    )


def host_bytes(config: RunConfig, grid: Grid, pp_rank: int = 0) -> StateBytes:
    """The same in host memory: nothing unless ``parallel.offload`` moves it there."""
    if config.parallel.offload == "none":
        return StateBytes()
    rank = Rank(config, grid, pp_rank)
    return StateBytes(optimizer=_optimizer(rank), teacher_shard=FP32 * rank.shard_numel(rank.teachers))


def _weights(rank: Rank, engine: Engine) -> int:
    if rank.zero_stage < 3:
        return SIZES[rank.weight_dtype] * sum(map(rank.whole_numel, rank.groups))
    small = sum(one.numel for group in rank.groups for one in group if engine.keeps_whole(one))
    return SIZES[rank.weight_dtype] * (sum(map(rank.shard_numel, rank.groups)) + small)


def _gathered_weights(rank: Rank, engine: Engine) -> int:
    if rank.zero_stage < 3:
        return 0
    large = sum(one.numel for group in rank.groups for one in group if not engine.keeps_whole(one))
    return SIZES[rank.weight_dtype] * min(large, engine.stage3_max_live_parameters)


def _gradients(rank: Rank) -> int:
    computed = SIZES[rank.weight_dtype] * rank.numel
    if is_bf16_optimizer(rank.parallel, rank.precision):
        return FP32 * sum(map(rank.whole_numel, rank.groups)) + computed
    return computed if rank.zero_stage < 2 else FP32 * sum(map(rank.shard_numel, rank.groups))


def _optimizer(rank: Rank) -> int:
    if rank.zero_stage == 0:
        return 2 * FP32 * rank.numel
    return 3 * FP32 * sum(map(rank.shard_numel, rank.groups))


def _teacher_weights(rank: Rank) -> int:
    size = SIZES[rank.dtype]
    if not rank.parallel.gathers_teacher:
        is_flat = rank.zero_stage < 3
        return size * (rank.grid.dp_size * rank.shard_numel(rank.teachers) if is_flat else _numel(rank.teachers))
    layers, kept = _layers(rank.teachers)
    pairs = [one + other for one, other in zip(layers, [*layers[1:], 0], strict=True)]
    return size * (kept + max(pairs))


def _buffers(rank: Rank) -> int:
    image = rank.config.model.image
    if image is None:
        return 0
    student = rank.is_first + (rank.is_last and image.decoder.add_positions != "none")
    teacher = rank.is_first and image.teacher_scope != "encoder"
    return image.num_tokens * rank.dim * (SIZES[rank.weight_dtype] * student + SIZES[rank.dtype] * teacher)


def _numel(parameters: list[Parameter]) -> int:
    return sum(one.numel for one in parameters)


def _layers(parameters: list[Parameter]) -> tuple[list[int], int]:
    """Elements of the teacher's layers, which come and go together, and of what belongs to none."""
    layers: dict[str, int] = {}
    kept = 0
    for one in parameters:
        layer = _layer_of(one.name)
        if layer is None:
            kept += one.numel
        else:
            layers[layer] = layers.get(layer, 0) + one.numel
    return list(layers.values()), kept


def _layer_of(name: str) -> str | None:
    """The module that ``GatheredWeights`` brings with a parameter."""
    parts = name.split(".")
    start = 2 if parts[0] == "frontends" else 1
    if parts[start] in ("extra_tokens", "alibi_scale"):
        return None
    return ".".join(parts[: start + (2 if parts[start] == "blocks" else 1)])
