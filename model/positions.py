"""Fixed positions and distance biases."""

import math
from typing import Literal

import torch
from torch import Tensor


def sincos_2d(grid_size: int, dim: int) -> Tensor:
    """Fixed 2-D sine-cosine table.

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines
    (fairseq ``get_2d_sincos_pos_embed``). Computed in float64, and on the CPU even while a network is made on another
    device: it may be one where there are no numbers.

    Returns:
        (1, grid_size^2, dim) fp32, cells row by row.
    """
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim / 4))
    angles = torch.arange(grid_size, dtype=torch.float64, device="cpu")[:, None] * omega
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = table.repeat(grid_size, 1)
    rows = table.repeat_interleave(grid_size, dim=0)
    return torch.cat([columns, rows], dim=1).float().unsqueeze(0)


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """ALiBi's slope per head: geometric for powers of two, else filled with every second slope of the next power.

    Returns:
        (num_heads,) fp32, computed on ``device``: copying a table there would make the host wait.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    heads = torch.arange(1, power + 1, dtype=torch.float64, device=device)
    between = (2 * heads - 1)[: num_heads - power] / 2
    return torch.exp2(torch.cat([heads, between]) * (-8 / power)).float()


def distances_1d(tokens: Tensor) -> Tensor:
    """Distances between all pairs of the same row: token numbers (N, V) -> (N, V, V) fp32."""
    return (tokens.unsqueeze(2) - tokens.unsqueeze(1)).abs().float()


def distances_2d(tokens: Tensor, grid_size: int, kind: Literal["manhattan", "euclidean"]) -> Tensor:
    """The same between cells of a square grid, which are numbered row by row."""
    down = distances_1d(tokens // grid_size)
    across = distances_1d(tokens % grid_size)
    return down + across if kind == "manhattan" else (down.square() + across.square()).sqrt()
