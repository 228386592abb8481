"""What student and teacher give: whole, or one stage of a pipeline."""

from typing import NamedTuple

from torch import Tensor

from model.masking import Views
from model.modalities.base import Context


class LocalOutput(NamedTuple):
    """What the teacher needs of the student: see ``teacher_scope``."""

    tokens: Tensor
    """(B, T, D) from the frontend, before positions and masking."""
    context: Context | None
    """Input of the shared blocks for the whole samples, without gradient, if the teacher begins there."""


class StudentOutput(NamedTuple):
    """What the losses and the teacher need of the student. N are the rows of ``views``."""

    views: Views
    """Of the batch, or under tensor parallelism this rank's share of them."""
    prediction: Tensor
    """(N, R, D) at the removed tokens, ascending."""
    encoded: Tensor
    """(N, ex + V, D), output of the last block, extra tokens first."""
    tokens: Tensor | None
    """(B, T, D) from the frontend, before positions and masking; None in a stage without frontends."""
    context: Context | None
    """Input of the shared blocks for the whole samples, without gradient, if the teacher begins there."""
    reconstruction: Tensor | None
    """(N, R, C * patch^2) predicted pixels at the removed tokens, if the objective has the term."""


class StageOutput(NamedTuple):
    """What a stage that is not the last gives."""

    hidden: Tensor
    """(N, ex + V, D), input of the next stage; of this rank's rows, where hidden states are split by rows."""
    tokens: Tensor | None
    """(B, T, D) from the frontend, without gradient, if it is here."""


class TeacherState(NamedTuple):
    """The teacher between two stages."""

    hidden: Tensor
    """(B, ex + T, D)."""
    total: Tensor | None
    """(B, T, D) fp32, sum over the averaged blocks so far; None before the first of them."""


class TeacherOutput(NamedTuple):
    """What the teacher gives."""

    targets: Tensor
    """(B, T, D) fp32."""
    encoded: Tensor
    """(B, ex + T, D), output of the last block."""
