"""Compiled blocks: torch.compile, which turns a block's many small operators into a few."""

import torch
from torch import nn

from model.encoder import Block

MAX_GRAPHS = 32
"""Versions of a block that are compiled before torch gives up and runs it as it is: student and teacher, each of
several modalities, with and without attention bias. Torch's own limit is 8."""


def compile_blocks(network: nn.Module, *, dynamic: bool, backend: str = "inductor") -> None:
    """Compile what every block computes; hooks, recomputation and blocks that are left out stay around it.

    Blocks share their graphs. Dropout draws other numbers than without compilation, from the same keyed seeds.

    Args:
        network: student or teacher.
        dynamic: one graph for all lengths, as speech needs it; else one for each, which is faster.
        backend: of torch.compile.
    """
    for block in network.modules():
        if isinstance(block, Block):
            block.compiled = torch.compile(  # type: ignore[call-overload]  # its types do not know of the limit
                block.compute, dynamic=dynamic, backend=backend, recompile_limit=MAX_GRAPHS
            )
