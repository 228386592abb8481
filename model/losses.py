"""Terms of the objective: each a sum with a count; the trainer divides by the global count (data2vec2.py)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.config import LossConfig, ModelConfig
from model.data2vec import StudentOutput, patchify
from model.masking import Views


@dataclass(frozen=True)
class LossTerm:
    """The run's loss is the sum over terms of ``weight * sum / count`` with global sums and counts."""

    sum: Tensor
    """Scalar fp32."""
    count: int
    weight: float


def objective(
    config: ModelConfig,
    student: StudentOutput,
    targets: Tensor,
    views: Views,
    source: Tensor,
) -> dict[str, LossTerm]:
    """All active terms of one microbatch.

    Args:
        config: weights and scales.
        student: the student's output.
        targets: (B, T, D) fp32.
        views: of the batch.
        source: (B, C, H, W) pixels, for the reconstruction.
    """
    loss, num_extra = config.loss, config.image.num_extra_tokens
    num_views = views.mask.shape[0] // targets.shape[0]
    num_rows, num_removed = views.removed.shape
    terms = {
        "regression": LossTerm(
            distance(student.prediction, _at_removed(targets, views, num_views), loss),
            num_rows * num_removed,
            loss.regression_weight,
        )
    }
    if loss.cls_weight > 0:
        goal = targets.mean(dim=1).repeat_interleave(num_views, dim=0)
        error = distance(student.encoded[:, num_extra - 1], goal, loss)
        terms["cls"] = LossTerm(error, num_rows, loss.cls_weight * loss.cls_rows)
    if loss.reconstruction_weight > 0:
        assert student.reconstruction is not None
        pixels = patchify(source.float(), config.image.patch_size)
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        goal = _at_removed((pixels - mean) / (variance + 1e-6).sqrt(), views, num_views)
        error = distance(student.reconstruction, goal, loss)
        terms["reconstruction"] = LossTerm(error, num_rows * num_removed, loss.reconstruction_weight)
    return terms


def distance(prediction: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    """Squared error, or smooth L1 if ``beta`` > 0, times the scale, summed over everything in fp32.

    Args:
        prediction: (..., D).
        target: same shape.
        config: ``beta`` and ``scale`` (None: 1 / sqrt(D)).
    """
    prediction, target = prediction.float(), target.float()
    if config.beta > 0:
        total = functional.smooth_l1_loss(prediction, target, reduction="sum", beta=config.beta)
    else:
        total = functional.mse_loss(prediction, target, reduction="sum")
    return total * (prediction.shape[-1] ** -0.5 if config.scale is None else config.scale)


def _at_removed(x: Tensor, views: Views, num_views: int) -> Tensor:
    """(B, T, D) -> (N, R, D) at each view's removed tokens."""
    index = views.removed.unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return x.repeat_interleave(num_views, dim=0).gather(1, index)
