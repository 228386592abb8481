"""Checks of what trains: devices, collectives, DeepSpeed, megatron-core. Each does a small piece of the real work."""

import os
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from deploy.doctor.findings import Finding

_BF16_TOLERANCE = 1e-2
"""Relative; a product of bf16 matrices is off by 2e-3."""
_SIZE = 256


def devices() -> Finding:
    """Every GPU multiplies two bf16 matrices; without one the CPU does."""
    build = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        if list(Path("/dev").glob("nvidia[0-9]*")):
            return Finding("error", f"{build} sees none of this machine's GPUs")
        error = matmul_error(torch.device("cpu"))
        if error > _BF16_TOLERANCE:
            return Finding("error", f"{build}: the CPU multiplies bf16 matrices wrongly ({error:.1g} off)")
        return Finding("absent", f"{build}: no GPU, {torch.get_num_threads()} CPU threads, bf16 matmul {error:.0e} off")
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    errors = {gpu: matmul_error(gpu) for gpu in gpus}
    wrong = [f"{gpu} ({error:.1g} off)" for gpu, error in errors.items() if not error < _BF16_TOLERANCE]
    if wrong:
        return Finding("error", f"{build}: bf16 matrices are multiplied wrongly by {', '.join(wrong)}")
    names = sorted({torch.cuda.get_device_name(gpu) for gpu in gpus})
    lowest = min(torch.cuda.get_device_capability(gpu) for gpu in gpus)
    text = (
        f"{build}: {len(gpus)} x {' / '.join(names)}, capability {lowest[0]}.{lowest[1]}, "
        f"bf16 matmul {max(errors.values()):.0e} off"
    )
    if lowest < (8, 0):
        return Finding("warning", f"{text}; it computes bf16 in software", "--precision.dtype fp32")
    return Finding("ok", text)


def matmul_error(device: torch.device) -> float:
    """Largest error of a bf16 product, relative to its largest element."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, _SIZE, _SIZE, generator=generator, dtype=torch.float64).bfloat16()
    exact = left.double() @ right.double()
    product = (left.to(device) @ right.to(device)).double().cpu()
    return float((product - exact).abs().max() / exact.abs().max())


def collectives() -> Finding:
    """An all-reduce over all GPUs of this machine by NCCL, or of this process with itself by gloo."""
    if not torch.cuda.is_available():
        device = _alone()
        total = torch.ones(1000, device=device)
        dist.all_reduce(total)
        name = dist.get_backend()
        right, text = bool((total == 1).all()), f"{name} (NCCL is for GPUs)"
    else:
        count = torch.cuda.device_count()
        parts = [torch.full((1000,), number + 1.0, device=f"cuda:{number}") for number in range(count)]
        torch.cuda.nccl.all_reduce(parts)
        right = all((part == count * (count + 1) / 2).all() for part in parts)
        text = f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))} over {count} GPUs"
    if not right:
        return Finding("error", f"{text} sums wrongly")
    return Finding("ok", f"{text}: an all-reduce sums right; d2v doctor --distributed checks several processes")


def deepspeed() -> Finding:
    """One step of a small network under ZeRO 1 in bf16, against what AdamW has to do."""
    from pretrain.environment import Processes, free_port
    from pretrain.optim import make_optimizer
    from pretrain.parallel.deepspeed_config import deepspeed_config
    from pretrain.parallel.fragments import Stretch
    from pretrain.parallel.grid import Grid
    from pretrain.parallel.groups import make_groups
    from pretrain.parallel.zero import StudentEngine, join_processes, prebuilt_operators
    from pretrain.sections import OptimSection, ParallelSection, PrecisionSection

    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # this process is alone, whoever started its parent
    device = _device()
    join_processes(
        Processes(0, 1, 0, 1, "127.0.0.1", free_port(), "single"), dist.get_default_backend_for_device(device)
    )
    groups, optim = make_groups(Grid(1, 1)), OptimSection(weight_decay=0.0, clip_norm=0.0)
    network = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    initial = {name: Stretch(0, weight.detach().clone().flatten()) for name, weight in network.named_parameters()}
    network = network.to(device, torch.bfloat16)
    config = deepspeed_config(optim, PrecisionSection(), ParallelSection(), microbatch_size=1, dp_size=1)
    optimizer = make_optimizer(network, {"0.weight", "0.bias"}, optim, 1, groups.tp_group)
    engine = StudentEngine(network, optimizer, config, groups, None)
    engine.start_from(initial)
    engine.backward(engine(torch.ones(1, 16, device=device, dtype=torch.bfloat16)).float().square().sum())
    engine.step(lr=0.01, eps=1e-12)
    moved = torch.cat([piece.master.cpu() - initial[piece.name].values for piece in engine.fragments])
    if not torch.allclose(moved.abs(), torch.tensor(0.01), rtol=1e-3):  # Adam's first step is lr in every direction
        return Finding("error", f"a ZeRO step of lr 0.01 moved weights by {moved.abs().min():.3g} to {moved.max():.3g}")
    built = ", ".join(prebuilt_operators()) or "none"
    return Finding("ok", f"{version('deepspeed')}: a ZeRO 1 step in bf16 is right; prebuilt operators: {built}")


def megatron() -> Finding:
    """A column-parallel linear against torch's own."""
    from pretrain.parallel.grid import Grid
    from pretrain.parallel.groups import make_groups
    from pretrain.parallel.tensor import MegatronLinears

    device = _alone()
    plain, cut = nn.Linear(16, 32), MegatronLinears(make_groups(Grid(1, 1))).column(16, 32)
    cut.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(4, 16)
    with torch.no_grad():
        found, expected = cut.to(device)(x.to(device)).cpu(), plain(x)
    if not torch.allclose(found, expected, atol=1e-3):
        return Finding("error", f"a linear of megatron-core is {float((found - expected).abs().max()):.1g} off")
    return Finding("ok", f"{version('megatron-core')}: a column-parallel linear is right")


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _alone() -> torch.device:
    """Start torch.distributed with this process only; returns its device."""
    device = _device()
    dist.init_process_group(dist.get_default_backend_for_device(device), store=dist.HashStore(), rank=0, world_size=1)
    return device
