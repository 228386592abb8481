"""The teacher: fp32 shards that follow the optimizer's, and a whole copy in the compute precision."""

import torch
import torch.distributed as dist
from torch import Tensor

from model.data2vec import Data2Vec
from model.ema import lerp_
from pretrain.parallel.fragments import FlatGroup, Fragment
from pretrain.parallel.groups import ProcessGroups


class ShardedTeacher:
    """An exponential moving average of the student, ZeRO-sharded.

    Each rank keeps 1 / dp_size of the fp32 average, cut like the optimizer's fp32 weights, so the update is
    local. The network that computes targets reads a whole copy in its own precision (its parameters are
    views of one flat vector), refreshed by one all-gather after every update.

    Attributes:
        module: the network that computes targets; evaluation mode, no gradients.
        shard: this rank's fp32 average, (shard_numel,).
        fragments: ``shard`` by parameter: (the student's fragment, the teacher's view of the same elements).
    """

    def __init__(self, module: Data2Vec, layout: FlatGroup, fragments: list[Fragment], groups: ProcessGroups) -> None:
        """Start as a copy of the student.

        Args:
            module: the network without decoders, on its device, in the compute precision; its weights are
                replaced.
            layout: the optimizer group that holds exactly the module's parameters.
            fragments: this rank's fragments of that group.
            groups: the data-parallel ranks.
        """
        self.module = module.eval().requires_grad_(False)
        self._groups = groups
        parameters = dict(module.named_parameters())
        assert {place.name for place in layout.placements} == set(parameters), "the teacher's group must match it"
        some = next(iter(parameters.values()))
        self._whole = torch.zeros(layout.shard_numel * groups.dp_size, dtype=some.dtype, device=some.device)
        for place in layout.placements:
            parameters[place.name].data = self._whole[place.offset : place.offset + place.numel].view(place.shape)
        self.shard = torch.zeros(layout.shard_numel, dtype=torch.float32, device=some.device)
        self.fragments: list[tuple[Fragment, Tensor]] = [
            (piece, self.shard[piece.shard_offset : piece.shard_offset + piece.master.numel()]) for piece in fragments
        ]
        self._pending: dist.Work | None = None
        self.copy_student()

    @torch.no_grad()
    def copy_student(self) -> None:
        """Set the average to the student's fp32 weights."""
        for student, teacher in self.fragments:
            teacher.copy_(student.master)
        self.refresh()

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """``teacher <- decay * teacher + (1 - decay) * student``; at decay 1 the teacher is frozen."""
        if decay >= 1.0:
            return
        self.ready()  # the all-gather may still be reading the shard
        lerp_([teacher for _, teacher in self.fragments], [student.master for student, _ in self.fragments], decay)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Start the all-gather that brings the new average into ``module``; ``ready`` waits for it."""
        self._pending = dist.all_gather_single(
            self._whole, self.shard.to(self._whole.dtype), group=self._groups.dp_group, async_op=True
        )

    def ready(self) -> Data2Vec:
        """``module``, with the weights of the last update."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        return self.module
