"""Layers of the teacher whose weights come and go together (``pretrain.parallel.teacher_weights``). No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.plan.rank import Group, Rank
from model.inventory import Parameter


@dataclass(frozen=True)
class Layer:
    """Parameters that are gathered at once."""

    names: frozenset[str]
    numel: int
    """Elements that are brought together, padding included."""
    calls: int
    """Collectives that bring them: one at stage 3, else one for every run that one rank owns."""


def layers_of(rank: Rank, parameters: Sequence[Parameter]) -> tuple[list[Layer], Layer]:
    """The layers in the order of the network, and what belongs to none and stays."""
    members: dict[str, list[tuple[int, Parameter]]] = {}
    kept: list[tuple[int, Parameter]] = []
    offset = 0
    for one in parameters:
        name = _layer_of(one.name)
        (kept if name is None else members.setdefault(name, [])).append((offset, one))
        offset += one.numel
    return [_layer(rank, each) for each in members.values()], _layer(rank, kept)


def _layer(rank: Rank, members: list[tuple[int, Parameter]]) -> Layer:
    names = frozenset(one.name for _, one in members)
    if rank.zero_stage == 3:
        parts = rank.shard_numel(Group(one for _, one in members))
        return Layer(names, rank.grid.dp_size * parts, 1)
    each = rank.shard_numel(rank.teachers)
    runs, end, owner = 0, -1, -1
    for start, one in members:
        for piece_owner in range(start // each, (start + one.numel - 1) // each + 1):
            first = max(start, piece_owner * each)
            runs += piece_owner != owner or first != end  # else the run goes on
            owner, end = piece_owner, min(start + one.numel, (piece_owner + 1) * each)
    return Layer(names, sum(one.numel for _, one in members), runs)


def _layer_of(name: str) -> str | None:
    """The module that a parameter comes with."""
    parts = name.split(".")
    start = 2 if parts[0] == "frontends" else 1
    if parts[start] in ("extra_tokens", "alibi_scale"):
        return None
    return ".".join(parts[: start + (2 if parts[start] == "blocks" else 1)])
