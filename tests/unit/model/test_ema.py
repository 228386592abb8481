"""Decay schedule and average, against exact arithmetic."""

import pytest
import torch

from model import ema


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.9998), (1, 0.9998000019), (50_000, 0.999895), (100_000, 0.99999), (10**6, 0.99999)]
)
def test_decay_is_linear_then_constant(step: int, expected: float) -> None:
    assert ema.decay(step, 0.9998, 0.99999, 100_000) == pytest.approx(expected, rel=1e-12)


def test_decay_of_one_freezes() -> None:
    assert ema.decay(300_000, 0.9998, 1.0, 300_000) == 1.0
    teacher, student = [torch.tensor([1.0, -2.0])], [torch.tensor([5.0, 5.0])]
    ema.lerp_(teacher, student, 1.0)
    assert teacher[0].tolist() == [1.0, -2.0]


@pytest.mark.parametrize("decay", [0.999, 0.9999, 0.99999])
def test_average_follows_fp64_over_a_thousand_steps(decay: float) -> None:
    """Relative error of the way travelled; bf16 averages would cover a tenth of it (ecosystem.md, finding 6)."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(10_000, generator=generator)
    student = torch.randn(10_000, generator=generator)
    exact, start = teacher.double(), teacher.double()
    for _ in range(1000):
        ema.lerp_([teacher], [student], decay)
        exact.lerp_(student.double(), 1 - decay)
    moved = (exact - start).norm()
    assert ((teacher.double() - exact).norm() / moved).item() < 1e-3
