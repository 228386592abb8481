"""Rows over the ranks that share one model, and modules that see no more than this rank's.

A row is a sample, or one of its views. Where rows are split, each rank computes with its own; parameters that serve
them get gradients that are sums over the ranks, and dropout falls differently on every rank.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Draws(Protocol):
    """Of what ranks have a part each: rows, or a layer's heads and units."""

    def own_draws(self, device: torch.device) -> AbstractContextManager[None]:
        """Inside, random numbers are those of this rank's part; outside they are the same on all ranks."""
        ...


class Rows(Draws, Protocol):
    """How the rows of a batch lie over ranks."""

    def here(self, num_rows: int) -> range:
        """Which of ``num_rows`` rows are this rank's."""
        ...

    def split(self, x: Tensor) -> Tensor:
        """All rows, alike on every rank, (N, ...) -> this rank's."""
        ...

    def join(self, x: Tensor, num_rows: int) -> Tensor:
        """This rank's rows -> all ``num_rows``, alike on every rank, as must be what is done with them."""
        ...

    def shared(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What is alike on every rank and serves this rank's rows: the gradients are sums over the ranks."""
        ...


class AllRows:
    """Every rank has all rows."""

    def here(self, num_rows: int) -> range:
        """All."""
        return range(num_rows)

    def split(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def join(self, x: Tensor, num_rows: int) -> Tensor:
        """As it is."""
        return x

    def shared(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """As they are."""
        return tensors

    def own_draws(self, device: torch.device) -> AbstractContextManager[None]:
        """Nothing to separate."""
        return nullcontext()


ALL_ROWS = AllRows()


class RowNorm(nn.LayerNorm):
    """LayerNorm of this rank's rows."""

    def __init__(self, dim: int, eps: float, rows: Rows) -> None:
        """Args: width, epsilon, which rows."""
        super().__init__(dim, eps=eps)
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """(N here, ..., dim) -> the same."""
        weight, bias = self._rows.shared(self.weight, self.bias)
        return functional.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class RowLinear(nn.Linear):
    """Linear of this rank's rows."""

    def __init__(self, in_features: int, out_features: int, rows: Rows) -> None:
        """Args: widths, which rows."""
        super().__init__(in_features, out_features)
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """(N here, ..., in) -> (N here, ..., out)."""
        return functional.linear(x, *self._rows.shared(self.weight, self.bias))


class OwnDropout(nn.Dropout):
    """Dropout of this rank's part."""

    def __init__(self, probability: float, draws: Draws) -> None:
        """Args: chance of a zero, of what this is a part."""
        super().__init__(probability)
        self._draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Dropout``."""
        if not self.training or self.p == 0:
            return x
        with self._draws.own_draws(x.device):
            return super().forward(x)
