"""Process groups of a run, made once and passed on as one frozen object."""

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class ProcessGroups:
    """The groups that this process belongs to."""

    dp_group: dist.ProcessGroup
    """Ranks that hold the same weights and see different samples; device tensors."""
    control_group: dist.ProcessGroup
    """The same ranks over gloo: counts and flags in host memory, so that no device has to be waited for."""
    dp_rank: int
    dp_size: int


def make_groups() -> ProcessGroups:
    """Groups of the initialised default process group: every rank is data parallel."""
    world = dist.group.WORLD
    assert world is not None, "torch.distributed is not initialised"
    control = dist.new_group(backend="gloo")
    return ProcessGroups(dp_group=world, control_group=control, dp_rank=dist.get_rank(), dp_size=dist.get_world_size())
