"""Building the networks takes the memory of what they are, once."""

import pytest
import torch

from model.data2vec import Data2Vec
from model.initialization import initialize
from pretrain.initial import draw, without_weights
from pretrain.parallel.grid import Grid
from pretrain.parallel.groups import make_groups
from pretrain.parallel.zero import Partitioning
from pretrain.recipes.registry import recipe
from tests.distributed.allocations import Allocations


def outline(**options: str) -> Data2Vec:
    with torch.device("meta"):
        return Data2Vec(recipe("image-tiny").model, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("group")
def test_drawn_weights_are_held_once_in_fp32_and_once_as_computed_with() -> None:
    below_stage_3 = Partitioning({"zero_optimization": {"stage": 1}}, make_groups(Grid(1, 1)))
    with Allocations() as allocations:
        student = outline()
        drawn = draw(student, 0, torch.device("cpu"), torch.bfloat16, below_stage_3)
    weights = sum(p.numel() for p in student.parameters())
    largest = max(p.numel() for p in student.parameters())
    positions = 4 * sum(buffer.numel() for buffer in student.buffers())
    assert 0 < allocations.peak - (4 + 2) * weights < 4 * largest + 8 * positions
    at_once = Data2Vec(recipe("image-tiny").model)
    initialize(at_once, 0)
    for name, expected in at_once.named_parameters():
        assert torch.equal(drawn[name].values.view(expected.shape), expected)
        assert torch.equal(student.get_parameter(name), expected.bfloat16())
    for name, table in at_once.named_buffers():
        assert torch.equal(student.get_buffer(name), table.bfloat16())


def test_a_network_without_weights_has_its_tables_only() -> None:
    with Allocations() as allocations:
        teacher = without_weights(outline(role="teacher"))
    whole = Data2Vec(recipe("image-tiny").model, role="teacher")
    assert [name for name, _ in teacher.named_parameters()] == [name for name, _ in whole.named_parameters()]
    assert sum(p.untyped_storage().nbytes() for p in teacher.parameters()) == 0
    assert all(buffer.abs().sum() > 0 for buffer in teacher.buffers())
    assert allocations.alive() == sum(4 * buffer.numel() for buffer in teacher.buffers())
