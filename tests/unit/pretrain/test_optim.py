"""Parameter groups, and the optimizer that measures, clips and skips at ZeRO stage 0."""

import pytest
import torch
from torch import nn

from model.data2vec import Data2Vec
from pretrain.optim import ClippingAdamW, parameter_groups
from pretrain.recipes.registry import recipe
from pretrain.sections import OptimSection


def test_groups_part_what_the_teacher_has_from_what_it_lacks() -> None:
    with torch.device("meta"):
        student = Data2Vec(recipe("image-base").model)
        teacher = Data2Vec(recipe("image-base").model, with_decoders=False)
    names = {name for name, _ in teacher.named_parameters()}
    shared, own = (group["params"] for group in parameter_groups(student, names))
    assert len(shared) == len(names)  # type: ignore[arg-type]
    by_identity = {parameter: name for name, parameter in student.named_parameters()}
    assert {by_identity[p].split(".")[0] for p in own} == {"decoders"}  # type: ignore[attr-defined]
    assert sum(p.numel() for p in own) == 2_585_856  # type: ignore[attr-defined]  # data2vec2-facts.md 2.5


def quadratic(clip_norm: float) -> tuple[nn.Parameter, ClippingAdamW]:
    weight = nn.Parameter(torch.tensor([3.0, -4.0]))
    section = OptimSection(lr=0.1, clip_norm=clip_norm, weight_decay=0.0)
    optimizer = ClippingAdamW([{"params": [weight]}], section)
    optimizer.param_groups[0]["lr"] = 0.1
    return weight, optimizer


def test_norm_is_measured_before_clipping_and_the_gradient_is_clipped() -> None:
    weight, optimizer = quadratic(clip_norm=1.0)
    weight.grad = torch.tensor([3.0, -4.0])
    optimizer.step()
    assert float(optimizer._global_grad_norm) == pytest.approx(5.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, -0.8]), rtol=1e-5, atol=0)
    small, gentle = quadratic(clip_norm=10.0)
    small.grad = torch.tensor([3.0, -4.0])
    gentle.step()
    torch.testing.assert_close(small.grad, torch.tensor([3.0, -4.0]), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradient_changes_nothing(bad: float) -> None:
    weight, optimizer = quadratic(clip_norm=1.0)
    weight.grad = torch.tensor([1.0, bad])
    optimizer.step()
    assert optimizer.overflow
    assert weight.tolist() == [3.0, -4.0]
    assert optimizer.state == {}
    weight.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    assert not optimizer.overflow
    assert weight[0] < 3.0
