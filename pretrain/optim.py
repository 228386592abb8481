"""Parameter groups and the optimizer."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.linear import cut_of
from pretrain.sections import OptimSection

TEACHER_GROUP, STUDENT_ONLY_GROUP = 0, 1
FILLER = "filler"
"""Name of a parameter that nothing reads and no checkpoint holds."""


def parameter_groups(student: nn.Module, teacher_names: set[str]) -> list[dict[str, object]]:
    """Trainable parameters in two groups: those the teacher has too, and the rest (decoders).

    The teacher's shards follow the optimizer's cut of a group, so a group must not mix the two. A stage of a pipeline
    may have nothing but what the teacher has: then the student gets a filler for the second group, because DeepSpeed
    reduces the gradient norm group by group over all stages.
    All get weight decay, as the reference really does (data2vec2-facts.md, trap 1).
    """
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    shared = [p for name, p in named if name in teacher_names]
    own = [p for name, p in named if name not in teacher_names]
    if not own:
        own = [nn.Parameter(torch.zeros_like(shared[0].flatten()[:1]))]
        student.register_parameter(FILLER, own[0])
    return [{"params": shared}, {"params": own}]


class ClippingAdamW(torch.optim.AdamW):
    """AdamW for ZeRO stage 0, where DeepSpeed leaves norm, clipping and overflow to the optimizer.

    DeepSpeed's engine picks up ``_global_grad_norm`` and ``overflow`` after ``step``: with a non-finite
    norm nothing is changed and the step does not count, as at stages 1 and 2.
    """

    overflow = False
    _global_grad_norm: torch.Tensor | float = 0.0

    def __init__(
        self,
        groups: list[dict[str, object]],
        section: OptimSection,
        tp_group: dist.ProcessGroup,
        *,
        fused: bool = False,
    ) -> None:
        """Args: parameter groups, settings, ranks that share one model; whether one kernel does all of a step."""
        super().__init__(groups, **_settings(section), fused=fused)
        self.clip_norm = section.clip_norm
        self._tp_group = tp_group

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Clip to ``clip_norm`` and update, unless the gradient norm is not finite."""
        assert closure is None
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = self._norm()
        self.overflow = not math.isfinite(norm.item())
        self._global_grad_norm = norm
        if self.overflow:
            return
        if self.clip_norm > 0:
            scale = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)
        super().step()

    def _norm(self) -> torch.Tensor:
        """Global norm: whole parameters count once, of cut ones every rank has a part."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        whole = torch.nn.utils.get_total_norm([p.grad for p in parameters if cut_of(p) is None])
        cut = [p.grad for p in parameters if cut_of(p) is not None]
        if not cut:
            return whole
        parts = torch.nn.utils.get_total_norm(cut).square()
        dist.all_reduce(parts, group=self._tp_group)
        return (whole.square() + parts).sqrt()


def has_fused_adamw(device_type: str) -> bool:
    """Whether torch has one kernel there for all of AdamW's arithmetic, instead of a dozen passes over the weights.

    Its numbers are AdamW's up to rounding. 20 M weights on one CPU thread: 14 ms of CPU time a step, 87 ms with
    ``foreach``, 127 ms with neither (torch 2.13).
    """
    return device_type in ("cpu", "cuda")


def make_optimizer(
    student: nn.Module,
    teacher_names: set[str],
    section: OptimSection,
    zero_stage: int,
    tp_group: dist.ProcessGroup,
) -> torch.optim.AdamW:
    """AdamW over ``parameter_groups``, fused where the student is if it can be; the lr is set before every step."""
    groups = parameter_groups(student, teacher_names)
    fused = has_fused_adamw(next(student.parameters()).device.type)
    if zero_stage == 0:
        return ClippingAdamW(groups, section, tp_group, fused=fused)
    return torch.optim.AdamW(groups, **_settings(section), fused=fused)


def _settings(section: OptimSection) -> dict[str, Any]:
    return {"lr": 0.0, "betas": section.betas, "eps": section.eps, "weight_decay": section.weight_decay}
