"""Terms of the objective: each a sum with a count; the trainer divides by the global count (data2vec2.py)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.config import ImageConfig
from model.data2vec import patchify
from model.masking import take
from model.outputs import StudentOutput
from model.sections import LossConfig, ModalityConfig


@dataclass(frozen=True)
class LossTerm:
    """The run's loss is the sum over terms of ``weight * sum / count`` with global sums and counts."""

    sum: Tensor
    """Scalar fp32."""
    count: int
    weight: float


def objective(
    config: ModalityConfig,
    student: StudentOutput,
    targets: Tensor,
    source: Tensor,
) -> dict[str, LossTerm]:
    """All active terms of one microbatch, over the rows that the student's output is of.

    Args:
        config: of the microbatch's modality.
        student: the student's output.
        targets: (B, T, D) fp32.
        source: its raw input, for the reconstruction of images (B, C, H, W).
    """
    loss, num_extra, views = config.loss, config.num_extra_tokens, student.views
    num_rows, num_removed = views.removed.shape
    tokens = num_rows * num_removed
    terms = {
        "regression": LossTerm(
            distance(student.prediction, take(views.spread(targets), views.removed), loss),
            tokens,
            loss.weight * loss.regression_weight,
        )
    }
    if loss.cls_weight > 0:
        goal = views.spread(targets.mean(dim=1))
        error = distance(student.encoded[:, num_extra - 1], goal, loss)
        terms["cls"] = LossTerm(error, num_rows, loss.weight * loss.cls_weight * loss.cls_rows)
    if loss.reconstruction_weight > 0:
        assert student.reconstruction is not None and isinstance(config, ImageConfig)
        pixels = patchify(source.float(), config.patch_size)
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        goal = take(views.spread((pixels - mean) / (variance + 1e-6).sqrt()), views.removed)
        error = distance(student.reconstruction, goal, loss)
        terms["reconstruction"] = LossTerm(error, tokens, loss.weight * loss.reconstruction_weight)
    return terms


def term_counts(num_rows: int, num_removed: int) -> dict[str, int]:
    """What the sums of ``objective`` are divided by: rows N of a batch and tokens R that each lacks."""
    return {"regression": num_rows * num_removed, "cls": num_rows, "reconstruction": num_rows * num_removed}


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
