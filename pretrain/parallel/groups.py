"""Process groups of a run, made once and passed on as one frozen object; nothing else asks megatron for groups."""

import warnings
from dataclasses import dataclass

import torch.distributed as dist

from pretrain.parallel.grid import Grid


@dataclass(frozen=True)
class ProcessGroups:
    """The groups that this process belongs to."""

    dp_group: dist.ProcessGroup
    """Ranks that hold the same weights and see different samples; device tensors."""
    tp_group: dist.ProcessGroup
    """Ranks that together hold one model and see the same samples; device tensors."""
    control_group: dist.ProcessGroup
    """All ranks over gloo: counts and flags in host memory, so that no device has to be waited for."""
    dp_rank: int
    dp_size: int
    tp_rank: int
    tp_size: int

    @property
    def rank(self) -> int:
        """Among all ranks."""
        return dist.get_rank(self.control_group)

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.dp_size * self.tp_size

    @property
    def speaks(self) -> bool:
        """Whether this rank gives what all ranks that see its samples know: of them one does."""
        return self.tp_rank == 0


def make_groups(grid: Grid) -> ProcessGroups:
    """Groups of the initialised default process group."""
    world = dist.group.WORLD
    assert world is not None, "torch.distributed is not initialised"
    control, rank = dist.new_group(backend="gloo"), dist.get_rank()
    dp_group, tp_group = _whole_models(world) if grid.tp_size == 1 else _cut_models(grid)
    return ProcessGroups(
        dp_group=dp_group,
        tp_group=tp_group,
        control_group=control,
        dp_rank=grid.dp_rank(rank),
        dp_size=grid.dp_size,
        tp_rank=grid.tp_rank(rank),
        tp_size=grid.tp_size,
    )


def _whole_models(world: dist.ProcessGroup) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Every rank is data parallel: no need to import megatron, which takes seconds."""
    alone, _ = dist.new_subgroups(1)
    return world, alone


def _cut_models(grid: Grid) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    with warnings.catch_warnings():  # megatron tells of every optional library that it does without
        warnings.simplefilter("ignore")
        from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=grid.tp_size)
    assert parallel_state.get_data_parallel_rank() == grid.dp_rank(dist.get_rank()), "megatron orders ranks otherwise"
    return parallel_state.get_data_parallel_group(), parallel_state.get_tensor_model_parallel_group()
