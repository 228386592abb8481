"""Process groups of a run, made once and passed on as one frozen object; nothing else asks megatron for groups."""

import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from pretrain.parallel.grid import Grid


@dataclass(frozen=True)
class ProcessGroups:
    """The groups that this process belongs to."""

    dp_group: dist.ProcessGroup
    """Ranks that hold the same weights and see different samples; device tensors."""
    tp_group: dist.ProcessGroup
    """Ranks that together hold one model, or one stage of it, and see the same samples; device tensors."""
    pp_group: dist.ProcessGroup
    """The stages of one pipeline, first to last; device tensors."""
    stage_group: dist.ProcessGroup
    """All ranks that hold parts of one stage: ``dp_group`` and ``tp_group`` of each other; device tensors."""
    model_group: dist.ProcessGroup
    """Ranks that together hold one whole model: ``tp_group`` of every stage; device tensors."""
    control_group: dist.ProcessGroup
    """All ranks over gloo: counts and flags in host memory, so that no device has to be waited for."""
    dp_rank: int
    dp_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int = 0
    pp_size: int = 1
    timeout_seconds: int = 1800
    """How long a collective waits for its ranks."""

    @property
    def rank(self) -> int:
        """Among all ranks."""
        return dist.get_rank(self.control_group)

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.dp_size * self.tp_size * self.pp_size

    @property
    def speaks(self) -> bool:
        """Whether this rank gives what all ranks that see its samples know: of them one does."""
        return self.tp_rank == 0 and self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether the losses are here."""
        return self.pp_rank == self.pp_size - 1

    @property
    def place(self) -> str:
        """This process, for messages."""
        parts = [f"rank {self.rank} of {self.world_size}"]
        if self.pp_size > 1:
            parts.append(f"stage {self.pp_rank} of {self.pp_size}")
        parts.append(f"dp {self.dp_rank}, tp {self.tp_rank}")
        return f"{parts[0]} ({', '.join(parts[1:])})"


def make_groups(grid: Grid, timeout_seconds: int = 1800) -> ProcessGroups:
    """Groups of the initialised default process group.

    Args:
        grid: where each rank stands.
        timeout_seconds: how long a collective waits for its ranks.
    """
    world = dist.group.WORLD
    assert world is not None, "torch.distributed is not initialised"
    control, rank = dist.new_group(backend="gloo"), dist.get_rank()
    dp_group, tp_group, pp_group, stage_group, model_group = (
        _whole_models(world) if grid.dp_size == dist.get_world_size() else _cut_models(grid)
    )
    for group in (world, control, dp_group, tp_group, pp_group, stage_group, model_group):
        _set_pg_timeout(timedelta(seconds=timeout_seconds), group)
    return ProcessGroups(
        dp_group=dp_group,
        tp_group=tp_group,
        pp_group=pp_group,
        stage_group=stage_group,
        model_group=model_group,
        control_group=control,
        dp_rank=grid.dp_rank(rank),
        dp_size=grid.dp_size,
        tp_rank=grid.tp_rank(rank),
        tp_size=grid.tp_size,
        pp_rank=grid.pp_rank(rank),
        pp_size=grid.pp_size,
        timeout_seconds=timeout_seconds,
    )


def _whole_models(world: dist.ProcessGroup) -> tuple[dist.ProcessGroup, ...]:
    """Every rank is data parallel: no need to import megatron, which takes seconds."""
    alone, _ = dist.new_subgroups(1)
    return world, alone, alone, world, alone


def _cut_models(grid: Grid) -> tuple[dist.ProcessGroup, ...]:
    with warnings.catch_warnings():  # megatron tells of every optional library that it does without
        warnings.simplefilter("ignore")
        from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():  # by a run before this one in the same process
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=grid.tp_size, pipeline_model_parallel_size=grid.pp_size
    )
    rank = dist.get_rank()
    places = parallel_state.get_data_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    assert places == (grid.dp_rank(rank), grid.pp_rank(rank)), "megatron orders ranks otherwise"
    return (
        parallel_state.get_data_parallel_group(),
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_pipeline_model_parallel_group(),
        parallel_state.get_tensor_and_data_parallel_group(),
        parallel_state.get_model_parallel_group(),
    )
