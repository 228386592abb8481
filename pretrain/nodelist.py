"""SLURM's lists of nodes, without SLURM: containers have none. No torch."""

import re

from pretrain.errors import RunError


def parse_nodelist(nodelist: str) -> list[str]:
    """The nodes of a list, in its order: ``n[08-10,3],login`` are n08, n09, n10, n3, login.

    Raises:
        RunError: if it is no list of nodes.
    """
    items = re.findall(r"(?:[^\[\],\s]|\[[^\[\]]*\])+", nodelist)
    if not items or ",".join(items) != nodelist:
        raise RunError(f"{nodelist!r} is not a list of nodes like n[08-10,3],login")
    return [node for item in items for node in _expand_item(item, nodelist)]


def _expand_item(item: str, nodelist: str) -> list[str]:
    """The nodes of one item; several brackets multiply, the last one runs fastest."""
    before, bracket, after = re.fullmatch(r"([^\[]*)(?:\[([^\]]*)\](.*))?", item).groups()  # type: ignore[union-attr]
    if bracket is None:
        return [before]
    rests = _expand_item(after, nodelist)
    return [before + number + rest for number in _numbers(bracket, nodelist) for rest in rests]


def _numbers(bracket: str, nodelist: str) -> list[str]:
    """``08-10,3`` -> 08, 09, 10, 3: a leading zero says how many digits all of its range have."""
    numbers: list[str] = []
    for part in bracket.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise RunError(f"{nodelist!r}: {part!r} is neither a number nor a range")
        first, last = match[1], match[2] or match[1]
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers
