"""The teacher: fp32 shards that follow the optimizer's, and the network that computes targets with their weights."""

import torch
from torch import Tensor

from model.data2vec import Data2Vec
from model.ema import lerp_
from pretrain.parallel.fragments import Fragment, Group
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.teacher_gather import make_gather
from pretrain.parallel.teacher_weights import GatheredWeights, ResidentWeights, TeacherWeights


class ShardedTeacher:
    """An exponential moving average of the student, ZeRO-sharded.

    Each rank keeps 1 / dp_size of the fp32 average, cut like the optimizer's fp32 weights and on their device, so the
    update is local. The network that computes targets gets its weights, in its own precision, from ``TeacherWeights``.

    Attributes:
        module: the network that computes targets; evaluation mode, no gradients.
        shard: this rank's fp32 average, (shard_numel,).
        fragments: ``shard`` by parameter: (the student's fragment, the teacher's view of the same elements).
    """

    def __init__(
        self,
        module: Data2Vec,
        layout: Group,
        fragments: list[Fragment],
        groups: ProcessGroups,
        device: torch.device,
        *,
        gathered: bool,
    ) -> None:
        """Start as a copy of the student.

        Args:
            module: the network without decoders, in the compute precision and in host memory; its weights are
                replaced, which is why they need not fit on the device.
            layout: the optimizer group that holds exactly the module's parameters.
            fragments: this rank's fragments of that group.
            groups: the data-parallel ranks.
            device: where the network computes.
            gathered: whether weights are there only while they are needed.
        """
        dtype = next(module.parameters()).dtype
        names = {name for name, _ in module.named_parameters()}
        assert {place.name for place in layout.placements} == names, "the teacher's group must match it"
        for parameter in module.parameters():
            parameter.data = parameter.data.new_empty(0)
        self.module = module.eval().requires_grad_(False).to(device)
        home = fragments[0].master.device if fragments else device
        self.shard = torch.zeros(layout.shard_numel, dtype=torch.float32, device=home)
        self.fragments: list[tuple[Fragment, Tensor]] = [
            (piece, self.shard[piece.shard_offset : piece.shard_offset + piece.master.numel()]) for piece in fragments
        ]
        gather = make_gather(layout, self.shard, dtype, device, groups)
        kind = GatheredWeights if gathered else ResidentWeights
        self._weights: TeacherWeights = kind(module, layout.placements, gather)
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
        self.ready()  # a gather may still be reading the shard
        lerp_([teacher for _, teacher in self.fragments], [student.master for student, _ in self.fragments], decay)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Start bringing the new average into ``module``; ``ready`` waits for what must be there before it runs."""
        self._weights.refresh()

    @torch.no_grad()
    def ready(self) -> Data2Vec:
        """``module``, with the weights of the last update, for one pass."""
        self._weights.ready()
        return self.module
