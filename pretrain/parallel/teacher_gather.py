"""Bringing fp32 shards together as weights in the compute precision: all of them, or some parameters at a time.

Which rank holds what is known everywhere, so that nothing but the weights travels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.parallel.fragments import FlatGroup, Group, Placement, SplitGroup
from pretrain.parallel.groups import ProcessGroups


@dataclass
class Arrival:
    """Weights on their way."""

    works: list[dist.Work]
    unpack: Callable[[], list[Tensor]]

    def wait(self) -> list[Tensor]:
        """Every asked parameter's elements, 1-D and contiguous, in the order in which they were asked for."""
        for work in self.works:
            work.wait()
        return self.unpack()


class Gather(Protocol):
    """How shards of one layout come together. All ranks call it with the same parameters in the same order."""

    whole_numel: int
    """Elements of a buffer for all parameters."""

    def all(self, into: Tensor) -> Arrival:
        """Every parameter of the layout, as views of ``into``."""
        ...

    def some(self, places: Sequence[Placement]) -> Arrival:
        """Some parameters, in new memory."""
        ...


@dataclass
class FlatGather:
    """ZeRO 0 to 2: the layout is one flat vector, so that a layer lies on one rank, or on a few neighbours.

    All parameters come by one all-gather, those of a layer by a broadcast of every run that one rank owns.
    """

    layout: FlatGroup
    shard: Tensor
    """This rank's fp32 elements, maybe in host memory."""
    dtype: torch.dtype
    device: torch.device
    groups: ProcessGroups
    whole_numel: int = field(init=False)

    def __post_init__(self) -> None:
        self.whole_numel = self.layout.shard_numel * self.groups.dp_size

    def all(self, into: Tensor) -> Arrival:
        """One all-gather."""
        mine = self.shard.to(self.device, self.dtype)
        work = dist.all_gather_single(into, mine, group=self.groups.dp_group, async_op=True)
        views = [into[place.offset : place.offset + place.numel] for place in self.layout.placements]
        return Arrival([work], lambda: views)

    def some(self, places: Sequence[Placement]) -> Arrival:
        """Broadcasts into one buffer."""
        buffer = torch.empty(sum(place.numel for place in places), dtype=self.dtype, device=self.device)
        works = []
        for owner, start, stop, shard_offset in self._runs(places):
            run = buffer[start:stop]
            if owner == self.groups.dp_rank:
                run.copy_(self.shard[shard_offset : shard_offset + stop - start])
            if self.groups.dp_size > 1:
                works.append(dist.broadcast(run, group_src=owner, group=self.groups.dp_group, async_op=True))
        return Arrival(works, lambda: list(buffer.split([place.numel for place in places])))

    def _runs(self, places: Sequence[Placement]) -> list[tuple[int, int, int, int]]:
        """What each broadcast carries: (owner, start and stop in the buffer, start in the owner's shard)."""
        runs: list[tuple[int, int, int, int]] = []
        each, start = self.layout.shard_numel, 0
        for place in places:
            done = 0
            while done < place.numel:
                owner, shard_offset = divmod(place.offset + done, each)
                length = min(place.numel - done, each - shard_offset)
                if runs and runs[-1][0] == owner and runs[-1][3] + start - runs[-1][1] == shard_offset:
                    runs[-1] = (*runs[-1][:2], start + length, runs[-1][3])  # the run goes on
                else:
                    runs.append((owner, start, start + length, shard_offset))
                start, done = start + length, done + length
        return runs


@dataclass
class SplitGather:
    """ZeRO 3: every rank holds a part of every parameter.

    One all-gather brings rank after rank; each parameter's parts are then joined in new memory, so that for a moment
    there are two copies of what was asked for.
    """

    layout: SplitGroup
    shard: Tensor
    """This rank's fp32 elements, maybe in host memory."""
    dtype: torch.dtype
    device: torch.device
    groups: ProcessGroups
    whole_numel: int = field(init=False)

    def __post_init__(self) -> None:
        self.whole_numel = sum(place.numel for place in self.layout.placements)

    def all(self, into: Tensor) -> Arrival:
        """One all-gather."""
        return self._gather(self.layout.placements, into)

    def some(self, places: Sequence[Placement]) -> Arrival:
        """One all-gather."""
        return self._gather(places, None)

    def _gather(self, places: Sequence[Placement], into: Tensor | None) -> Arrival:
        parts = [self.layout.part_numel(place) for place in places]
        ranks = torch.empty(self.groups.dp_size, sum(parts), dtype=self.dtype, device=self.device)
        mine = ranks[self.groups.dp_rank]
        for place, slot in zip(places, mine.split(parts), strict=True):
            slot.copy_(self.shard[place.offset : place.offset + slot.numel()])
        works = []
        if self.groups.dp_size > 1:
            flat = ranks.view(-1)
            works.append(dist.all_gather_single(flat, mine, group=self.groups.dp_group, async_op=True))

        def unpack() -> list[Tensor]:
            numels = [place.numel for place in places]
            whole = torch.empty(sum(numels), dtype=self.dtype, device=self.device) if into is None else into
            joined = list(whole.split(numels))
            for target, slots in zip(joined, ranks.split(parts, dim=1), strict=True):
                _join(slots, target)
            return joined

        return Arrival(works, unpack)


def _join(parts: Tensor, target: Tensor) -> None:
    """Rows (ranks, n) one after the other into 1-D ``target``, which may end before they do."""
    full, rest = divmod(target.numel(), parts.shape[1])
    target[: target.numel() - rest].view(full, -1).copy_(parts[:full])
    if rest:
        target[-rest:].copy_(parts[full, :rest])


def make_gather(
    layout: Group, shard: Tensor, dtype: torch.dtype, device: torch.device, groups: ProcessGroups
) -> Gather:
    """The gather that fits a layout."""
    if isinstance(layout, FlatGroup):
        return FlatGather(layout, shard, dtype, device, groups)
    return SplitGather(layout, shard, dtype, device, groups)
