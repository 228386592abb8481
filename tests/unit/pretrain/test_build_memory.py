"""Building the networks takes the memory of what they are, once."""

import torch

from model.data2vec import Data2Vec
from pretrain.build import draw, without_weights
from pretrain.recipes.registry import recipe
from tests.distributed.allocations import Allocations


def test_drawn_weights_are_held_once_in_fp32_and_once_as_computed_with() -> None:
    with Allocations() as allocations:
        student = Data2Vec(recipe("image-tiny").model)
        drawn = draw(student, 0, torch.device("cpu"), torch.bfloat16)
    weights = sum(p.numel() for p in student.parameters())
    largest = max(p.numel() for p in student.parameters())
    positions = 4 * sum(buffer.numel() for buffer in student.buffers())
    assert 0 < allocations.peak - (4 + 2) * weights < 4 * largest + 8 * positions
    for name, parameter in student.named_parameters():
        assert drawn[name].dtype == torch.float32
        assert torch.equal(drawn[name].bfloat16(), parameter)


def test_a_teacher_without_weights_has_its_tables_only() -> None:
    whole = Data2Vec(recipe("image-tiny").model, role="teacher")
    names = [name for name, _ in whole.named_parameters()]
    teacher = without_weights(whole)
    assert [name for name, _ in teacher.named_parameters()] == names
    assert sum(p.untyped_storage().nbytes() for p in teacher.parameters()) == 0
    assert all(buffer.abs().sum() > 0 for buffer in teacher.buffers())
