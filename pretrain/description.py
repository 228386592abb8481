"""A run in one line, for the event that starts its log: what runs where, and by which kernels."""

from pathlib import Path

import torch

from model.attention import attention_kernel
from pretrain.config import RunConfig
from pretrain.optim import has_fused_adamw
from pretrain.parallel.groups import ProcessGroups


def describe(config: RunConfig, groups: ProcessGroups, device: torch.device, checkpoint: Path | None) -> str:
    """Recipe, checkpoint, devices, layout, precision, kernels."""
    where = f"{groups.world_size} x {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'}"
    begin = f" from {checkpoint.name}" if checkpoint else ""
    cut = f", each model on {groups.tp_size}" if groups.tp_size > 1 else ""
    cut += ", hidden states split by rows" if config.parallel.sequence_parallel else ""
    cut += f", in {groups.pp_size} stages" if groups.pp_size > 1 else ""
    layout = f"{config.name}{begin} on {where}{cut}, ZeRO {config.parallel.zero_stage}, {config.precision.dtype}"
    return f"{layout}; {kernels(config, device)}"


def kernels(config: RunConfig, device: torch.device) -> str:
    """By what attention, optimizer and blocks are computed; student and teacher have the same device and precision."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.precision.dtype]
    chosen: dict[str, list[str]] = {}
    for name, side in config.model.modalities.items():
        biased = side.alibi is not None or name == "audio"  # recordings have padding
        chosen.setdefault(attention_kernel(device.type, dtype, biased=biased), []).append(name)
    attention = ", ".join(f"{kernel} ({', '.join(names)})" for kernel, names in chosen.items())
    adamw = f"{'fused' if has_fused_adamw(device.type) else 'plain'} AdamW"
    adamw += " on cpu" if config.parallel.offload == "optimizer" else ""
    blocks = "compiled" if config.parallel.compile == "blocks" else "not compiled"
    return f"attention of student and teacher by {attention}; {adamw}; blocks {blocks}"
