"""What a kind of file is that holds a program: how to write, read and judge it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Named inputs -> named outputs, as of ``Inference``."""


class Format(NamedTuple):
    """Of a kind of file."""

    write: Callable[[ExportedProgram, Path, torch.dtype], None]
    """Write a program, its weights stored in a type."""
    read: Callable[[Path], Run]
    """Read what was written."""
    computes: dict[str, str]
    """--dtype -> what the program computes in."""
    tolerance: float
    """Largest difference that is right."""
    other_kernels: bool
    """Whether another library than torch computes it, which rounds in other places."""
