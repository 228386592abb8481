"""What DeepSpeed does with a run's weights, as far as it decides where bytes lie and what travels. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.inventory import Parameter
from pretrain.sections import ParallelSection, PrecisionSection

Dtype = Literal["fp32", "bf16", "fp64", "uint8"]
SIZES: dict[Dtype, int] = {"fp32": 4, "bf16": 2, "fp64": 8, "uint8": 1}
"""Bytes of an element."""
ALLREDUCE_NUMEL = 500_000_000
"""Gradients that stage 0 copies together to reduce them by one collective; no setting."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Settings of DeepSpeed's optimizers (0.19.8) and their defaults; a user's JSON may set others.

    Amounts are elements. Field names are those of ``zero_optimization``.
    """

    reduce_bucket_size: int = 500_000_000
    """Gradients that are reduced by one collective (stages 1 to 3)."""
    stage3_param_persistence_threshold: int = 100_000
    """Parameters of fewer elements stay whole on every rank at stage 3."""
    stage3_max_reuse_distance: int = 1_000_000_000
    """Weights are kept whole at stage 3 if they are used again within so many elements of other weights."""
    stage3_max_live_parameters: int = 1_000_000_000
    """Most elements that are whole at once at stage 3."""
    stage3_prefetch_bucket_size: int = 50_000_000
    """Elements that are gathered ahead at stage 3."""
    sub_group_size: int = 1_000_000_000
    """Elements of an optimizer group that stage 3 steps at once."""

    @classmethod
    def of(cls, deepspeed: Mapping[str, Any]) -> "Engine":
        """What a DeepSpeed JSON says, as ``read_user_json`` gives it."""
        section = deepspeed.get("zero_optimization", {})
        known = cls.__dataclass_fields__
        return cls(**{name: value for name, value in section.items() if name in known})

    def keeps_whole(self, parameter: Parameter) -> bool:
        """Whether stage 3 leaves a parameter whole."""
        return parameter.numel <= self.stage3_param_persistence_threshold


def weight_dtype(parallel: ParallelSection, precision: PrecisionSection) -> Dtype:
    """Of the student's weights: at stage 0 they are the optimizer's."""
    return "fp32" if parallel.zero_stage == 0 else precision.dtype


def is_bf16_optimizer(parallel: ParallelSection, precision: PrecisionSection) -> bool:
    """Whether DeepSpeed takes its ``BF16_Optimizer``, which keeps whole gradients in fp32, and not its ZeRO one."""
    return precision.dtype == "bf16" and parallel.zero_stage == 1 and parallel.offload == "none"
