"""Meters that stay on the device between log lines, and one collective per log line."""

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.parallel.groups import ProcessGroups

_PIECE_NUMEL = 1 << 19
"""Numbers that are squared in fp64 at a time: 4 MiB."""


class LossMeter:
    """Sums of weighted loss terms over steps; read once per log interval."""

    def __init__(self, device: torch.device) -> None:
        """An empty meter on ``device``."""
        self._device = device
        self._step: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._num_steps = 0

    def add(self, name: str, value: Tensor) -> None:
        """Add this rank's share of a term in one microbatch."""
        value = value.detach().double() if self._device.type == "cpu" else value.detach().float()
        self._step[name] = self._step[name] + value if name in self._step else value

    def end_step(self, *, counted: bool = True) -> None:
        """Take the step's microbatches in, or drop them (a skipped step may hold nan)."""
        if counted:
            self._num_steps += 1
            for name, value in self._step.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._step = {}

    def read(self, group: dist.ProcessGroup) -> dict[str, float]:
        """Mean per step of every term over the interval, summed over ranks; empties the meter.

        At least one step must have counted.
        """
        names = sorted(self._sums)
        stacked = torch.stack([self._sums[name] for name in names]) / self._num_steps
        dist.all_reduce(stacked, group=group)
        self._sums, self._num_steps = {}, 0
        return dict(zip(names, stacked.tolist(), strict=True))


class SpreadMeter:
    """Mean over channels of the standard deviation over all other axes, microbatches and ranks.

    ``sqrt(unbiased variance + 1e-6)``, as ``compute_var`` of fairseq's data2vec2.py.
    """

    def __init__(self) -> None:
        """An empty meter."""
        self._moments: dict[str, Tensor] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Add (..., D) of one microbatch, maybe of no rows; all names have the same D.

        In pieces, for this runs before the backward pass, when memory is as full as it gets.
        """
        rows = tensor.reshape(-1, tensor.shape[-1])
        moments = torch.zeros(3, rows.shape[1], dtype=torch.float64, device=rows.device)
        moments[0] = len(rows)
        for some in rows.split(max(1, _PIECE_NUMEL // rows.shape[1])):
            piece = some.double()
            moments[1] += piece.sum(0)
            moments[2] += piece.square().sum(0)
        self._moments[name] = self._moments[name] + moments if name in self._moments else moments

    def read(self, group: dist.ProcessGroup) -> dict[str, float]:
        """Spread by name over the ranks of ``group``, with one collective; empties the meter."""
        names = sorted(self._moments)
        sums = torch.stack([self._moments[name] for name in names])
        dist.all_reduce(sums, group=group)
        self._moments = {}
        count, total, squares = sums.unbind(dim=1)
        variance = (squares - total.square() / count) / (count - 1)
        values = (variance.clamp_min(0) + 1e-6).sqrt().mean(dim=-1)
        return dict(zip(names, values.tolist(), strict=True))


def of_all_stages(groups: ProcessGroups, *figures: dict[str, float]) -> tuple[dict[str, float], ...]:
    """Figures of this rank's pipeline: those of its stages in one, for each has some; one collective of all ranks."""
    if groups.pp_size == 1:
        return figures
    boxes: list[tuple[dict[str, float], ...]] = [()] * groups.world_size
    dist.all_gather_object(boxes, figures, group=groups.control_group)
    stages = [boxes[rank] for rank in dist.get_process_group_ranks(groups.pp_group)]
    return tuple(
        {name: value for stage in stages for name, value in stage[place].items()} for place in range(len(figures))
    )
