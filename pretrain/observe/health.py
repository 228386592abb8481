"""Is the representation alive? Effective rank and spread of frontend, student and teacher; alarms.

The spread of predictions and targets alone misses a collapsed frontend (fairseq issue 5239), and the
released image configs turn even that guard off. Effective rank alone misses tokens that are all but equal: a tiny
speech run whose student's spread had fallen to 4e-4 kept a rank of 10, its loss fell, and targets and predictions still
differed at the edges of recordings.
"""

import math

import torch
from torch import Tensor

from pretrain.sections import HealthSection

MAX_ROWS = 2048
"""Tokens that a measurement looks at; more would not change the figures but cost time."""


def figures(**features: Tensor | None) -> dict[str, float]:
    """Effective rank and spread of named features (..., D); of None there are none."""
    measured = {}
    for name, value in features.items():
        if value is not None:
            measured[f"{name}_effective_rank"] = effective_rank(value)
            measured[f"{name}_spread"] = spread(value)
    return measured


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of centred features.

    1 for a collapsed cloud, D for an isotropic one (Roy & Vetterli 2007; RankMe, arXiv 2210.02885).

    Args:
        features: (..., D).
    Returns:
        nan if any feature is not finite.
    """
    covariance = torch.cov(_sample(features).T)
    if not math.isfinite(covariance.sum().item()):
        return float("nan")
    sigma = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt()
    if sigma.sum().item() == 0:
        return 1.0
    share = sigma / sigma.sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()).item())


def spread(features: Tensor) -> float:
    """Mean over channels of the standard deviation over tokens.

    Args:
        features: (..., D).
    """
    return float(_sample(features).std(dim=0).mean().item())


def alarms(step: int, section: HealthSection, measured: dict[str, float]) -> list[str]:
    """What is wrong, one sentence each.

    Args:
        step: completed steps; nothing is an alarm before ``section.after_steps``.
        section: the thresholds.
        measured: any of ``*target_spread``, ``*prediction_spread``, ``*student_spread`` and ``*_effective_rank``.
    """
    if step < section.after_steps:
        return []
    limits = {
        "target_spread": section.min_target_spread,
        "prediction_spread": section.min_prediction_spread,
        "student_spread": section.min_student_spread,
        "effective_rank": section.min_effective_rank,
    }
    return [
        f"collapse: {name} {value:.4g} is below {limit:g}"
        for name, value in measured.items()
        for figure, limit in limits.items()
        if name.endswith(figure) and not value >= limit
    ]


def _sample(features: Tensor) -> Tensor:
    rows = features.reshape(-1, features.shape[-1])
    stride = max(1, rows.shape[0] // MAX_ROWS)
    return rows[::stride].double() if rows.device.type == "cpu" else rows[::stride].float()
