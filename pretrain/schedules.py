"""Learning rate and Adam's epsilon as pure functions of the step. No torch."""

import math


def cosine_lr(step: int, *, peak: float, warmup_steps: int, max_steps: int) -> float:
    """Learning rate of update ``step`` (0-based): linear from 0 to ``peak``, then a half cosine to 0.

    The first update has learning rate 0 (fairseq ``cosine_lr_scheduler.py``, ``warmup_init_lr`` 0).
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup_steps) / (max_steps - warmup_steps)))


def uncorrected_eps(step: int, *, eps: float, beta2: float) -> float:
    """The epsilon that makes torch's AdamW equal to fairseq's Adam at update ``step`` (0-based).

    fairseq adds ``eps`` to the root of the second moment before the bias correction, torch after it:
    ``sqrt(v) + eps = sqrt(1 - beta2^t) * (sqrt(v / (1 - beta2^t)) + eps / sqrt(1 - beta2^t))``.
    """
    return eps / math.sqrt(1 - beta2 ** (step + 1))
