"""Sequence parallelism: linears that are cut over ranks, between hidden states that are split by rows over them.

What every rank needs of the others is gathered before a column-parallel linear, and what each has a summand of is
added up and scattered after a row-parallel one: together they send what the one sum of plain tensor parallelism does.
The backward pass gathers the first one's input again instead of keeping it. megatron-core has the same for sequences
split by position (Korthikanti et al. 2022, arXiv 2205.05198), on CUDA only; rows need no padding to a multiple.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional


def column(x: Tensor, weight: Tensor, bias: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's rows (N / size, ..., in), its part of the output's weights -> its part of all rows' output."""
    output: Tensor = _Column.apply(*_in_one_dtype(x, weight, bias), group)
    return output


def row(x: Tensor, weight: Tensor, bias: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's part of all rows (N, ..., in / size), its part of the weights -> its rows (N / size, ..., out)."""
    output: Tensor = _Row.apply(*_in_one_dtype(x, weight, bias), group)
    return output


class _Column(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group = group
        whole, arrival = _gather(x, group)
        _wait(arrival)
        return functional.linear(whole, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        whole, arrival = _gather(x, ctx.group)
        summand = gradients[0] @ weight
        _wait(arrival)
        of_x, departure = _scatter(summand, ctx.group)
        rows = gradients[0].flatten(0, -2)
        of_weight, of_bias = rows.t() @ whole.flatten(0, -2), rows.sum(0)
        _wait(departure)
        return of_x, of_weight, of_bias, None


class _Row(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group = group
        # Added by one rank before the sum, its gradient is complete on all of them, for they gather all rows' anyway.
        summand = functional.linear(x, weight, bias if group.rank() == 0 else None)
        output, departure = _scatter(summand, group)
        _wait(departure)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        whole, arrival = _gather(gradients[0], ctx.group)
        _wait(arrival)
        rows = whole.flatten(0, -2)
        return whole @ weight, rows.t() @ x.flatten(0, -2), rows.sum(0), None


def _gather(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, dist.Work | None]:
    """All ranks' rows, once the work is done."""
    whole = x.new_empty(len(x) * group.size(), *x.shape[1:])
    if not x.numel():  # of a block that is left out
        return whole, None
    return whole, dist.all_gather_single(whole, x.contiguous(), group=group, async_op=True)


def _scatter(summand: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, dist.Work | None]:
    """This rank's rows of the sum over ranks, once the work is done."""
    part = summand.new_empty(len(summand) // group.size(), *summand.shape[1:])
    if not summand.numel():
        return part, None
    return part, dist.reduce_scatter_single(part, summand.contiguous(), group=group, async_op=True)


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()


def _in_one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast would compute: it does not reach into backward passes, and what travels should be small."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)
