"""Programs of torch.export: ``.pt2`` files, which ``torch.export.load`` reads without any code of ours."""

from pathlib import Path

import torch
from torch.export import ExportedProgram

from deploy.export.format import Format, Run
from deploy.export.inference import quiet

TOLERANCE = 1e-6


def write(program: ExportedProgram, path: Path, stored: torch.dtype) -> None:
    """Write a program; its weights are ``stored`` as they compute."""
    with quiet():
        torch.export.save(program, path)


def read(path: Path) -> Run:
    """A written program as a function of named tensors."""
    with quiet():
        module = torch.export.load(path).module()
    return lambda given: module(**given)


FORMAT = Format(write, read, {name: name for name in ("fp32", "bf16", "fp16")}, TOLERANCE, other_kernels=False)
