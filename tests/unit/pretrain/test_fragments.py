"""The two cuts of a group: every element owned once, in order."""

import math

import pytest
import torch

from pretrain.parallel.fragments import pack, split

PARAMETERS = [("a", (3, 5), None), ("b", (1,), None), ("c", (2, 2, 2), None), ("d", (11,), None)]


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4, 7])
def test_every_element_is_owned_exactly_once(dp_size: int) -> None:
    group = pack(PARAMETERS, dp_size)
    flat = torch.arange(group.shard_numel * dp_size)
    owners = {name: torch.zeros(math.prod(shape), dtype=torch.int64) for name, shape, _ in PARAMETERS}
    for rank in range(dp_size):
        shard = flat[rank * group.shard_numel : (rank + 1) * group.shard_numel]
        for place, start, stop, shard_offset in group.owned(rank):
            owners[place.name][start:stop] += 1
            mine = shard[shard_offset : shard_offset + stop - start]
            torch.testing.assert_close(mine, flat[place.offset + start : place.offset + stop], rtol=0, atol=0)
    assert all(bool((count == 1).all()) for count in owners.values())
    assert group.shard_numel == math.ceil(35 / dp_size)


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4, 7, 12])
def test_every_parameter_is_split_by_itself(dp_size: int) -> None:
    group = split(PARAMETERS, dp_size)
    owned = [group.owned(rank) for rank in range(dp_size)]
    for number, (name, shape, _) in enumerate(PARAMETERS):
        numel = math.prod(shape)
        parts = [piece for pieces in owned for piece in pieces if piece[0].name == name]
        assert [element for _, start, stop, _ in parts for element in range(start, stop)] == list(range(numel))
        before = sum(math.ceil(math.prod(shape) / dp_size) for _, shape, _ in PARAMETERS[:number])
        assert {shard_offset for *_, shard_offset in parts} == {before}  # at the same place on every rank
        assert max(stop - start for _, start, stop, _ in parts) == math.ceil(numel / dp_size)
    assert group.shard_numel == sum(math.ceil(math.prod(shape) / dp_size) for _, shape, _ in PARAMETERS)
