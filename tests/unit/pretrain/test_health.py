"""Effective rank, spread and alarms on features whose answer is known."""

import math

import pytest
import torch

from pretrain.observe import health
from pretrain.sections import HealthSection


def test_effective_rank_of_an_isotropic_cloud_is_its_dimension() -> None:
    basis = torch.linalg.qr(torch.randn(512, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    centred = basis - basis.mean(0)
    assert health.effective_rank(centred) == pytest.approx(16, rel=0.01)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_effective_rank_counts_equal_directions(rank: int) -> None:
    signs = torch.tensor([[(i >> k) & 1 for k in range(rank)] for i in range(2**rank)], dtype=torch.float64)
    features = torch.zeros(2**rank, 8, dtype=torch.float64)
    features[:, :rank] = signs * 2 - 1
    assert health.effective_rank(features) == pytest.approx(rank, rel=1e-6)


def test_collapsed_and_broken_features() -> None:
    assert health.effective_rank(torch.ones(4, 10, 8)) == pytest.approx(1.0)
    assert math.isnan(health.effective_rank(torch.full((4, 8), float("nan"))))
    assert health.spread(torch.ones(4, 10, 8)) == 0.0


def test_alarms_after_the_first_steps_only() -> None:
    section = HealthSection(after_steps=10, min_target_spread=0.1, min_prediction_spread=0.01, min_effective_rank=1.5)
    sick = {"target_spread": 0.05, "prediction_spread": 0.5, "frontend_effective_rank": float("nan")}
    assert health.alarms(9, section, sick) == []
    problems = health.alarms(10, section, sick)
    assert len(problems) == 2
    assert "target_spread" in problems[0] and "frontend_effective_rank" in problems[1]
    assert health.alarms(10, section, {"target_spread": 1.0, "student_effective_rank": 20.0}) == []


def test_alarms_of_every_modality() -> None:
    section = HealthSection(after_steps=0, min_target_spread=0.1, min_prediction_spread=0.01, min_effective_rank=1.5)
    measured = {
        "image_target_spread": 0.05,
        "audio_target_spread": 0.2,
        "audio_prediction_spread": 0.005,
        "text_teacher_effective_rank": 1.2,
        "text_student_spread": 0.009,
        "text_frontend_spread": 0.0,  # told, but no alarm: what counts is the rank
    }
    assert health.alarms(0, section, measured) == [
        "collapse: image_target_spread 0.05 is below 0.1",
        "collapse: audio_prediction_spread 0.005 is below 0.01",
        "collapse: text_teacher_effective_rank 1.2 is below 1.5",
        "collapse: text_student_spread 0.009 is below 0.01",
    ]


def test_tokens_that_are_all_but_equal_are_seen_whatever_their_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(96, generator=generator)
    collapsed = health.figures(student=common + 0.002 * torch.randn(8, 40, 96, generator=generator))
    assert collapsed["student_effective_rank"] > 80
    assert health.alarms(5_000, HealthSection(), {"target_spread": 0.5, "prediction_spread": 0.3, **collapsed}) == [
        f"collapse: student_spread {collapsed['student_spread']:.4g} is below 0.01"
    ]
    alive = health.figures(student=common + 0.6 * torch.randn(8, 40, 96, generator=generator))
    assert health.alarms(5_000, HealthSection(), alive) == []
