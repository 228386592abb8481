"""How an optimizer group's parameters are cut over ranks, and the pieces that this rank owns.

There are two cuts, both into shards of ``shard_numel`` elements per rank. At ZeRO stages 0 to 2 the parameters lie
one after the other in one flat vector that is cut as a whole (``FlatGroup``); at stage 3 every parameter is cut by
itself (``SplitGroup``). The teacher and the checkpoints know nothing else of ZeRO.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from model.linear import Cut


@dataclass(frozen=True)
class Placement:
    """One parameter's place in its group."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """Where it begins: in the flat vector of a ``FlatGroup``, in every rank's shard of a ``SplitGroup``."""
    cut: Cut | None = None
    """Which part of the whole parameter this is, if tensor parallelism cuts it."""

    @property
    def numel(self) -> int:
        """Elements of the parameter, or of the part of it."""
        return math.prod(self.shape)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        if self.cut is None:
            return self.shape
        return (*self.shape[: self.cut.dim], self.cut.whole, *self.shape[self.cut.dim + 1 :])


Piece = tuple[Placement, int, int, int]
"""Of which parameter, its elements from where to where, and where they begin in the owner's shard."""


@dataclass(frozen=True)
class FlatGroup:
    """One flat vector of ``dp_size * shard_numel`` elements; rank r owns the r-th shard. The tail is padding."""

    placements: tuple[Placement, ...]
    shard_numel: int
    """Elements that every rank owns, padding included."""

    def owned(self, dp_rank: int) -> list[Piece]:
        """What rank ``dp_rank`` owns."""
        low, high = dp_rank * self.shard_numel, (dp_rank + 1) * self.shard_numel
        pieces = []
        for place in self.placements:
            first, last = max(low, place.offset), min(high, place.offset + place.numel)
            if first < last:
                pieces.append((place, first - place.offset, last - place.offset, first - low))
        return pieces


@dataclass(frozen=True)
class SplitGroup:
    """Every parameter is cut into ``dp_size`` equal parts, the last of which may be padded, empty or both.

    A rank's shard is its parts one after the other.
    """

    placements: tuple[Placement, ...]
    dp_size: int

    @property
    def shard_numel(self) -> int:
        """Elements that every rank owns, padding included."""
        return sum(self.part_numel(place) for place in self.placements)

    def part_numel(self, place: Placement) -> int:
        """Elements of a parameter in every rank's shard, padding included."""
        return -(-place.numel // self.dp_size)

    def owned(self, dp_rank: int) -> list[Piece]:
        """What rank ``dp_rank`` owns."""
        pieces = []
        for place in self.placements:
            each = self.part_numel(place)
            first, last = min(dp_rank * each, place.numel), min((dp_rank + 1) * each, place.numel)
            if first < last:
                pieces.append((place, first, last, place.offset))
        return pieces


Group = FlatGroup | SplitGroup


@dataclass(frozen=True)
class Fragment:
    """A run of one parameter's elements that this rank owns, as live 1-D fp32 views."""

    place: Placement
    start: int
    """First element, counted in the flattened parameter, or the part of it that this rank has."""
    group: int
    shard_offset: int
    """Where the run begins in this rank's shard of the group."""
    master: Tensor
    """The optimizer's fp32 weights."""
    exp_avg: Tensor
    """Adam's first moment."""
    exp_avg_sq: Tensor
    """Adam's second moment."""

    @property
    def name(self) -> str:
        """The parameter's."""
        return self.place.name

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.start + self.master.numel()

    @property
    def num_stored(self) -> int:
        """Elements of the run that are not padding of a last, shorter part."""
        cut, shape = self.place.cut, self.place.shape
        real = self.place.numel if cut is None else self.place.numel // shape[cut.dim] * (cut.stop - cut.start)
        return max(0, min(self.stop, real) - self.start)


class Stretch(NamedTuple):
    """Values of a run of one parameter's elements."""

    start: int
    """First element, counted in the flattened parameter, or the part of it that this rank has."""
    values: Tensor
    """1-D."""

    def between(self, start: int, stop: int) -> Tensor:
        """Those of the elements from ``start`` to ``stop`` that are here."""
        return self.values[max(0, start - self.start) : max(0, stop - self.start)]


def pack(parameters: Sequence[tuple[str, tuple[int, ...], Cut | None]], dp_size: int) -> FlatGroup:
    """Lay parameters (name, shape, cut) one after the other and cut the vector into ``dp_size`` equal shards."""
    placements, offset = [], 0
    for name, shape, cut in parameters:
        placements.append(Placement(name, shape, offset, cut))
        offset += math.prod(shape)
    return FlatGroup(tuple(placements), -(-offset // dp_size))


def split(parameters: Sequence[tuple[str, tuple[int, ...], Cut | None]], dp_size: int) -> SplitGroup:
    """Cut every parameter (name, shape, cut) into ``dp_size`` equal parts."""
    placements, offset = [], 0
    for name, shape, cut in parameters:
        placements.append(Placement(name, shape, offset, cut))
        offset += -(-math.prod(shape) // dp_size)
    return SplitGroup(tuple(placements), dp_size)
