"""Where DeepSpeed's optimizers (0.19.8) keep this rank's fp32 weights and moments, stage by stage.

Their attributes are internal: ``StudentEngine.start_from`` compares what is found here with the weights that should
be there.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from model.linear import Cut, cut_of
from pretrain.parallel.fragments import FlatGroup, Fragment, Group, Placement, SplitGroup, pack, split
from pretrain.parallel.groups import ProcessGroups


class Handles(Protocol):
    """What the optimizer of one ZeRO stage holds on this rank."""

    partitions: list[Tensor]
    """What torch's AdamW steps, fp32."""
    groups: list[Group]
    """Layout of every optimizer group."""
    fragments: list[Fragment]
    """What this rank owns, as live views."""

    def whole_fragments(self) -> list[Fragment]:
        """All that has to be written for this rank to hold a given state."""
        ...

    def publish(self) -> None:
        """Make the network's weights follow fp32 weights that were written into the fragments."""
        ...

    def clear_gradients(self) -> None:
        """Forget the gradients of a step, where DeepSpeed does not."""
        ...


class Replicated:
    """Stage 0: every rank steps whole fp32 parameters; ownership is cut as stage 1 would cut it.

    The fragments cover only this rank's share: enough for the teacher's shards and for writing a checkpoint once.
    """

    def __init__(self, adam: torch.optim.AdamW, names: dict[Tensor, str], groups: ProcessGroups) -> None:
        """Args: the optimizer over the network's parameters, what they are called, the ranks."""
        self._adam = adam
        self._weights = {names[p]: p for group in adam.param_groups for p in group["params"]}
        self.partitions: list[Tensor] = list(self._weights.values())
        _start_state(adam, self.partitions)
        self.groups: list[Group] = []
        self.fragments: list[Fragment] = []
        for number, group in enumerate(adam.param_groups):
            layout = pack([(names[p], tuple(p.shape), cut_of(p)) for p in group["params"]], groups.dp_size)
            self.groups.append(layout)
            for place, start, stop, shard_offset in layout.owned(groups.dp_rank):
                views = [t.view(-1)[start:stop] for t in _state(adam, self._weights[place.name])]
                self.fragments.append(Fragment(place, start, number, shard_offset, *views))

    def whole_fragments(self) -> list[Fragment]:
        """Every parameter."""
        return [
            Fragment(place, 0, number, -1, *(t.view(-1) for t in _state(self._adam, self._weights[place.name])))
            for number, group in enumerate(self.groups)
            for place in group.placements
        ]

    def publish(self) -> None:
        """The fp32 weights are the network's."""

    def clear_gradients(self) -> None:
        """DeepSpeed does."""


class FlatPartitions:
    """Stages 1 and 2: of every group one flat fp32 partition."""

    def __init__(
        self, optimizer: Any, adam: torch.optim.AdamW, names: dict[Tensor, str], groups: ProcessGroups
    ) -> None:
        """Args: DeepSpeed's optimizer, torch's inside it, what the network's parameters are called, the ranks."""
        self._optimizer = optimizer
        if hasattr(optimizer, "fp32_groups_flat_partition"):  # BF16_Optimizer: bf16 at stage 1
            wholes, members = optimizer.bf16_groups_flat, optimizer.bf16_groups
            self.partitions: list[Tensor] = optimizer.fp32_groups_flat_partition
        else:
            wholes, members = optimizer.bit16_groups_flat, optimizer.round_robin_bit16_groups
            self.partitions = optimizer.single_partition_of_fp32_groups
        _start_state(adam, self.partitions)
        self.groups: list[Group] = []
        self.fragments: list[Fragment] = []
        for number, (whole, parameters) in enumerate(zip(wholes, members, strict=True)):
            partition = self.partitions[number]
            placements = tuple(
                Placement(names[p], tuple(p.shape), int(p.data.storage_offset() - whole.storage_offset()), cut_of(p))
                for p in parameters
                if p in names  # a filler has none
            )
            layout = FlatGroup(placements, partition.numel())
            self.groups.append(layout)
            for place, start, stop, shard_offset in layout.owned(groups.dp_rank):
                end = shard_offset + stop - start
                views = [t[shard_offset:end] for t in _state(adam, partition)]
                self.fragments.append(Fragment(place, start, number, shard_offset, *views))

    def whole_fragments(self) -> list[Fragment]:
        """What this rank owns."""
        return self.fragments

    def publish(self) -> None:
        """Round the partitions to the weights and gather them."""
        self._optimizer.update_lp_params()

    def clear_gradients(self) -> None:
        """Set those that it accumulates in host memory to 0, for the reason of ``SplitPartitions``; drop its sums.

        With offload it drops the fp32 sums of bf16 gradients after a good step only: those of a skipped step would
        be added to all later ones, and a NaN would never leave.
        """
        for gradient in getattr(self._optimizer, "accumulated_grads_in_cpu", {}).values():
            gradient.zero_()
        sums = getattr(self._optimizer, "averaged_gradients", {})
        sums.update(dict.fromkeys(sums))


class SplitPartitions:
    """Stage 3: every parameter is cut by itself; a group's parts lie in one flat partition per sub-group.

    Sub-groups (``zero_optimization.sub_group_size``) are runs of a group's parameters that are stepped one after the
    other; nothing outside this class sees them.
    """

    def __init__(
        self, optimizer: Any, adam: torch.optim.AdamW, names: dict[Tensor, str], groups: ProcessGroups
    ) -> None:
        """Args: DeepSpeed's optimizer, torch's inside it, what the network's parameters are called, the ranks."""
        self._optimizer = optimizer
        self.partitions: list[Tensor] = optimizer.fp32_partitioned_groups_flat
        _start_state(adam, self.partitions)
        parameters: list[list[tuple[str, tuple[int, ...], Cut | None]]] = [[] for _ in adam.param_groups]
        homes: dict[str, tuple[Tensor, int]] = {}
        for sub_group, (members, partition) in enumerate(zip(optimizer.fp16_groups, self.partitions, strict=True)):
            offset = 0
            for p in members:
                shape = tuple(p.ds_shape)
                parameters[optimizer.sub_group_to_group_id[sub_group]].append((names[p], shape, cut_of(p)))
                homes[names[p]] = partition, offset
                offset += p.ds_tensor.ds_numel
            assert offset == partition.numel(), "DeepSpeed pads sub-groups"
        layouts: list[SplitGroup] = [split(members, groups.dp_size) for members in parameters]
        self.groups: list[Group] = [*layouts]
        self.fragments: list[Fragment] = []
        for number, layout in enumerate(layouts):
            for place, start, stop, shard_offset in layout.owned(groups.dp_rank):
                partition, first = homes[place.name]
                views = [t[first : first + stop - start] for t in _state(adam, partition)]
                self.fragments.append(Fragment(place, start, number, shard_offset, *views))

    def whole_fragments(self) -> list[Fragment]:
        """What this rank owns."""
        return self.fragments

    def publish(self) -> None:
        """Round the partitions to the parts of the weights; small ones, which DeepSpeed keeps whole, are gathered."""
        self._optimizer._partition_all_parameters()
        for sub_group in range(len(self.partitions)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
        kept = self._optimizer.persistent_parameters
        if kept:
            kept[0].all_gather(kept)

    def clear_gradients(self) -> None:
        """Set the accumulated gradients to 0.

        DeepSpeed overwrites them in a step's first microbatch and adds in the others, so what the first one does not
        use (another modality's parameters) would keep the gradient of the step before.
        """
        self._optimizer.grad_partitions_flat_buffer.zero_()


def _start_state(adam: torch.optim.AdamW, partitions: list[Tensor]) -> None:
    """Make AdamW's state before its first step, so that there are views of it. A fused one counts on the device."""
    for partition in partitions:
        adam.state[partition] = {
            "step": torch.zeros((), device=partition.device if adam.defaults["fused"] else "cpu"),
            "exp_avg": torch.zeros_like(partition, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(partition, requires_grad=False),
        }


def _state(adam: torch.optim.AdamW, partition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    state = adam.state[partition]
    return partition.detach(), state["exp_avg"], state["exp_avg_sq"]
