"""What ranks say to each other. No torch."""

from dataclasses import dataclass
from typing import Literal

from deploy.plan.engine import Dtype
from pretrain.parallel.grid import Grid

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "reduce", "broadcast", "send", "receive"]
GroupName = Literal["dp", "tp", "pp", "model", "world"]
When = Literal["batch", "teacher", "forward", "backward", "step", "refresh"]
"""When a step's batch is fetched; in the teacher's pass; in the student's; in the engine's step; while the new average
goes to the teacher, which is hidden behind the next step's first passes."""


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
        return factors.get(self.kind, 1.0) * self.num_bytes if group_size > 1 else 0.0


def group_size(grid: Grid, group: GroupName) -> int:
    """Ranks of a group."""
    sizes = {"dp": grid.dp_size, "tp": grid.tp_size, "pp": grid.pp_size, "model": grid.tp_size * grid.pp_size}
    return sizes.get(group, grid.world_size)
