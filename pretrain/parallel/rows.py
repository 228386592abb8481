"""Rows split over tensor-parallel ranks, and what that takes of their collectives.

Ranks that share one model run the same program, so that their collectives meet in the backward pass, too.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SplitRows:
    """Runs of rows, as even as can be: ``model.rows.Rows`` over a group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        """Args: the ranks that share the rows."""
        self._group = group
        self._rank = group.rank()

    def here(self, num_rows: int) -> range:
        """A run of at most one row more or less than others have; maybe none."""
        return share(num_rows, self._rank, self._group.size())

    def split(self, x: Tensor) -> Tensor:
        """A copy of the run; the backward pass gathers."""
        part: Tensor = _Split.apply(x, self._group)
        return part

    def join(self, x: Tensor, num_rows: int) -> Tensor:
        """One all-gather; the backward pass takes its part of a gradient that is alike on every rank."""
        whole: Tensor = _Join.apply(x, num_rows, self._group)
        return whole

    def shared(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Identity; the backward pass adds up with one all-reduce for all of them, which have one dtype."""
        alike: tuple[Tensor, ...] = _Share.apply(self._group, *tensors)
        return alike

    def own_draws(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """Without gradient (teacher, whole samples) all ranks compute the same rows, and so draw the same."""
        return own_draws(self._rank, device) if torch.is_grad_enabled() else contextlib.nullcontext()


def share(num_rows: int, rank: int, size: int) -> range:
    """The rows of one of ``size`` ranks: the first ones have one more if they do not divide."""
    each, more = divmod(num_rows, size)
    start = rank * each + min(rank, more)
    return range(start, start + each + (rank < more))


def gather(x: Tensor, num_rows: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's share of rows -> all of them, on every rank."""
    size = group.size()
    each, more = divmod(num_rows, size)
    if more:
        x = torch.cat([x, x.new_zeros(each + 1 - len(x), *x.shape[1:])])
    whole = x.new_empty(len(x) * size, *x.shape[1:])
    if x.numel():
        dist.all_gather_single(whole, x.contiguous(), group=group)
    if not more:
        return whole
    parts = whole.unflatten(0, (size, -1))
    return torch.cat([parts[:more].flatten(0, 1), parts[more:, :-1].flatten(0, 1)])


@contextlib.contextmanager
def own_draws(rank: int, device: torch.device) -> Iterator[None]:
    """Draws inside depend on the rank; the common stream goes on as if it had given one number."""
    seed = int(torch.randint(2**62, (), device="cpu"))
    before = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    torch.manual_seed(seed ^ rank)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        if before[1] is not None:
            torch.cuda.set_rng_state(before[1], device)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.num_rows, ctx.group = len(x), group
        rows = share(len(x), group.rank(), group.size())
        return x[rows.start : rows.stop].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gather(gradients[0], ctx.num_rows, ctx.group), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_rows: int, group: dist.ProcessGroup) -> Tensor:
        ctx.rows = share(num_rows, group.rank(), group.size())
        return gather(x, num_rows, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.rows.start : ctx.rows.stop], None, None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=ctx.group)
        parts = flat.split([gradient.numel() for gradient in gradients])
        return None, *(part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True))
