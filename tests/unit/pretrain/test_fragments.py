"""The cut of flat vectors: every element owned once, in order."""

import math

import pytest
import torch

from pretrain.parallel.fragments import pack


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4, 7])
def test_every_element_is_owned_exactly_once(dp_size: int) -> None:
    parameters = [("a", (3, 5)), ("b", (1,)), ("c", (2, 2, 2)), ("d", (11,))]
    group = pack(parameters, dp_size)
    flat = torch.arange(group.shard_numel * dp_size)
    owners = {name: torch.zeros(math.prod(shape), dtype=torch.int64) for name, shape in parameters}
    for rank in range(dp_size):
        shard = flat[rank * group.shard_numel : (rank + 1) * group.shard_numel]
        for place, start, stop, shard_offset in group.owned(rank):
            owners[place.name][start:stop] += 1
            mine = shard[shard_offset : shard_offset + stop - start]
            torch.testing.assert_close(mine, flat[place.offset + start : place.offset + stop], rtol=0, atol=0)
    assert all(bool((count == 1).all()) for count in owners.values())
    assert group.shard_numel == math.ceil(35 / dp_size)
