"""ALiBi's scales, which the first stage of a pipeline owns and every stage uses.

Every stage makes its attention bias from the batch; only these few numbers must be kept the same. Later stages hold
plain fp32 tensors that DeepSpeed does not know: they are set before every step, and their gradients go back once.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.data2vec import Data2Vec
from model.modalities.base import Frontend
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.watch import Watch


class TiedScales:
    """The scales of student and teacher on all stages of one pipeline."""

    def __init__(
        self, student: Data2Vec, teacher: Data2Vec, groups: ProcessGroups, device: torch.device, watch: Watch
    ) -> None:
        """Give later stages their tensors; ``refresh`` fills them.

        Args:
            student: this stage of it.
            teacher: this stage of it; where it has no scale of its own it uses the student's.
            groups: whose ``pp_group`` are the stages.
            device: where this stage computes.
            watch: told of collectives.
        """
        self._groups = groups
        self._watch = watch
        self._values: list[Tensor] = []
        self._learned: list[Tensor] = []
        for name, side in student.config.modalities.items():
            if side.alibi is None:
                continue
            owns = side.teacher_scope != "encoder"
            if student.is_first:
                scale = _scale_of(student, name)
                self._values += [scale, _scale_of(teacher, name)] if owns else [scale]
            else:
                scale = torch.zeros(student.scale_shape(name), device=device)
                student.scales[name] = scale
                teacher.scales[name] = torch.zeros_like(scale) if owns else scale.detach()
                self._values += [scale, teacher.scales[name]] if owns else [scale]
            if side.alibi.learned:
                self._learned.append(scale.requires_grad_())

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the first stage's values to the others."""
        if not self._values:
            return
        flat = torch.cat([value.detach().float().flatten() for value in self._values])
        with self._watch.phase("sharing ALiBi's scales between the stages"):
            dist.broadcast(flat, group_src=0, group=self._groups.pp_group)
        if self._groups.pp_rank > 0:
            for value, part in zip(self._values, flat.split([value.numel() for value in self._values]), strict=True):
                value.copy_(part.view(value.shape))

    def inject(self, hidden: Tensor) -> Tensor:
        """In the first stage, what leaves for the last microbatch: its backward pass adds the others' gradients.

        They are complete then: every stage has run its last backward pass before this one's begins. Part of that
        pass, and not one of their own, because DeepSpeed sees gradients through its hooks in a backward pass only.
        """
        return _Inject.apply(hidden, self._gathered, *self._learned) if self._learned else hidden

    def settle(self) -> None:
        """In later stages, after the step's last backward pass: hand the gradients of this step to the first."""
        if self._learned and self._groups.pp_rank > 0:
            gradients = [torch.zeros_like(scale) if scale.grad is None else scale.grad for scale in self._learned]
            self._reduce(gradients)
            for scale in self._learned:
                scale.grad = None

    def _gathered(self) -> list[Tensor]:
        total = self._reduce([torch.zeros(scale.shape, device=scale.device) for scale in self._learned])
        parts = total.split([scale.numel() for scale in self._learned])
        return [part.view(scale.shape).to(scale.dtype) for part, scale in zip(parts, self._learned, strict=True)]

    def _reduce(self, gradients: list[Tensor]) -> Tensor:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with self._watch.phase("adding up the stages' gradients of ALiBi's scales"):
            dist.reduce(flat, group_dst=0, group=self._groups.pp_group)
        return flat


class _Inject(torch.autograd.Function):
    """Identity whose backward pass gives other tensors gradients that come from elsewhere."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, fetch: Callable[[], list[Tensor]], *tied: Tensor) -> Tensor:
        ctx.fetch = fetch
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return gradients[0], None, *ctx.fetch()


def _scale_of(model: Data2Vec, modality: str) -> Tensor:
    frontend = model.frontends[modality]
    assert isinstance(frontend, Frontend)
    return frontend.alibi_scale
