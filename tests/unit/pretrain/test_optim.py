"""Parameter groups, and the optimizer that measures, clips and skips at ZeRO stage 0."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.data2vec import Data2Vec
from model.linear import Cut, mark_cut
from pretrain import optim
from pretrain.optim import ClippingAdamW, parameter_groups
from pretrain.recipes.registry import recipe
from pretrain.schedules import uncorrected_eps
from pretrain.sections import OptimSection


def test_groups_part_what_the_teacher_has_from_what_it_lacks() -> None:
    with torch.device("meta"):
        student = Data2Vec(recipe("image-base").model)
        teacher = Data2Vec(recipe("image-base").model, role="teacher")
    names = {name for name, _ in teacher.named_parameters()}
    shared, own = (group["params"] for group in parameter_groups(student, names))
    assert len(shared) == len(names)  # type: ignore[arg-type]
    by_identity = {parameter: name for name, parameter in student.named_parameters()}
    assert {by_identity[p].split(".")[0] for p in own} == {"decoders"}  # type: ignore[attr-defined]
    assert sum(p.numel() for p in own) == 2_585_856  # type: ignore[attr-defined]  # data2vec2-facts.md 2.5


@pytest.mark.parametrize(
    ("name", "without_teacher", "number"),
    [
        # data2vec2-facts.md 2.5, and of speech the convolutions, their norms, and the projection with its norm
        ("audio-base", {"decoders.audio", "frontends.audio.local"}, 619_776 + 4_206_592 + 395_008),
        ("text-base", {"decoders.text", "frontends.text"}, 28_907_520 + (50_265 + 514) * 768 + 2 * 768),
    ],
)
def test_groups_follow_the_scope_of_the_teacher(name: str, without_teacher: set[str], number: int) -> None:
    with torch.device("meta"):
        student = Data2Vec(recipe(name).model)
        teacher = Data2Vec(recipe(name).model, role="teacher")
    names = {name for name, _ in teacher.named_parameters()}
    shared, own = (group["params"] for group in parameter_groups(student, names))
    assert len(shared) == len(names)  # type: ignore[arg-type]
    owned = {name: p for name, p in student.named_parameters() if any(p is other for other in own)}  # type: ignore[attr-defined]
    assert all(any(name.startswith(f"{part}.") for part in without_teacher) for name in owned)
    assert sum(p.numel() for p in owned.values()) == number


def quadratic(clip_norm: float, group: dist.ProcessGroup) -> tuple[nn.Parameter, ClippingAdamW]:
    weight = nn.Parameter(torch.tensor([3.0, -4.0]))
    section = OptimSection(lr=0.1, clip_norm=clip_norm, weight_decay=0.0)
    optimizer = ClippingAdamW([{"params": [weight]}], section, group)
    optimizer.param_groups[0]["lr"] = 0.1
    return weight, optimizer


def test_norm_is_measured_before_clipping_and_the_gradient_is_clipped(group: dist.ProcessGroup) -> None:
    weight, optimizer = quadratic(1.0, group)
    weight.grad = torch.tensor([3.0, -4.0])
    optimizer.step()
    assert float(optimizer._global_grad_norm) == pytest.approx(5.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, -0.8]), rtol=1e-5, atol=0)
    small, gentle = quadratic(10.0, group)
    small.grad = torch.tensor([3.0, -4.0])
    gentle.step()
    torch.testing.assert_close(small.grad, torch.tensor([3.0, -4.0]), rtol=0, atol=0)


def test_norm_counts_whole_and_cut_parameters(group: dist.ProcessGroup) -> None:
    whole, cut = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    mark_cut(cut, Cut(dim=0, rank=0, size=1, whole=1))
    optimizer = ClippingAdamW([{"params": [whole, cut]}], OptimSection(clip_norm=0.0), group)
    whole.grad, cut.grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    optimizer.step()
    assert float(optimizer._global_grad_norm) == pytest.approx(7.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradient_changes_nothing(bad: float, group: dist.ProcessGroup) -> None:
    weight, optimizer = quadratic(1.0, group)
    weight.grad = torch.tensor([1.0, bad])
    optimizer.step()
    assert optimizer.overflow
    assert weight.tolist() == [3.0, -4.0]
    assert optimizer.state == {}
    weight.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    assert not optimizer.overflow
    assert weight[0] < 3.0


def trained(zero_stage: int, fused: bool, monkeypatch: pytest.MonkeyPatch, group: dist.ProcessGroup) -> list[Tensor]:
    """Weights after 20 steps with changing eps, as the trainer sets it."""
    monkeypatch.setattr(optim, "has_fused_adamw", lambda device_type: fused)
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 5))
    section = OptimSection(lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, clip_norm=0.5)
    optimizer = optim.make_optimizer(student, {"0.weight", "0.bias"}, section, zero_stage, group)
    assert optimizer.defaults["fused"] is fused
    for step in range(20):
        for settings in optimizer.param_groups:
            settings |= {"lr": section.lr, "eps": uncorrected_eps(step, eps=section.eps, beta2=section.betas[1])}
        student(torch.randn(4, 9)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in student.parameters()]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_fused_steps_are_plain_steps(
    zero_stage: int, monkeypatch: pytest.MonkeyPatch, group: dist.ProcessGroup
) -> None:
    plain, fused = (trained(zero_stage, choice, monkeypatch, group) for choice in (False, True))
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_cpu_and_cuda_have_a_fused_step() -> None:
    assert [optim.has_fused_adamw(kind) for kind in ("cpu", "cuda", "meta")] == [True, True, False]
    on_cpu = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)  # raises where there is none
    assert on_cpu.defaults["fused"]
