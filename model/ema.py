"""The teacher's exponential moving average: decay as a function of the step, and the update. No collectives."""

import torch
from torch import Tensor


def decay(step: int, start: float, end: float, anneal_steps: int) -> float:
    """Decay after ``step`` updates: linear from ``start`` to ``end``, then constant (fairseq ``get_annealed_rate``)."""
    if step >= anneal_steps:
        return end
    return end - (end - start) * (1 - step / anneal_steps)


def lerp_(teacher: list[Tensor], student: list[Tensor], decay: float) -> None:
    """``teacher <- decay * teacher + (1 - decay) * student`` in place.

    Args:
        teacher: fp32; lower precision does not follow the student at decays near 1.
        student: fp32, same shapes and devices.
        decay: between 0 and 1.
    """
    torch._foreach_lerp_(teacher, student, 1 - decay)
