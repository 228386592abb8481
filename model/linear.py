"""The seam through which tensor parallelism enters: who makes the linears that can be cut, and how they are cut."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from model.rows import ALL_ROWS, Draws, Rows


@dataclass(frozen=True)
class Cut:
    """A parameter that holds one of ``size`` equal parts of a whole along one dimension; the last may be padded."""

    dim: int
    rank: int
    size: int
    whole: int
    """Length of the whole along ``dim``; a multiple of ``size`` unless the last part is padded."""

    @property
    def start(self) -> int:
        """First place of this part."""
        return self.rank * -(-self.whole // self.size)

    @property
    def stop(self) -> int:
        """One beyond the last place that is not padding."""
        return min(self.whole, self.start + -(-self.whole // self.size))

    def of(self, whole: Tensor) -> Tensor:
        """This part of a whole tensor, without padding."""
        return whole.narrow(self.dim, self.start, self.stop - self.start)


def mark_cut(parameter: nn.Parameter, cut: Cut | None) -> None:
    """Note on a parameter which part it is."""
    parameter.cut = cut  # type: ignore[attr-defined]


def cut_of(parameter: Tensor) -> Cut | None:
    """Which part a parameter is; None if it is a whole."""
    return getattr(parameter, "cut", None)


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """Shape of what a parameter is a part of."""
    shape, cut = list(parameter.shape), cut_of(parameter)
    if cut is not None:
        shape[cut.dim] = cut.whole
    return tuple(shape)


class LinearPart(nn.Module):
    """Marks a linear of which each rank holds a part."""

    weight: nn.Parameter
    bias: nn.Parameter


class EmbeddingPart(nn.Module):
    """Marks an embedding of which each rank holds a part."""

    weight: nn.Parameter


class LinearFactory(Draws, Protocol):
    """Makes linears and embeddings, whole or cut over ``size`` ranks; modules have ``weight`` and ``bias``."""

    rank: int
    size: int
    ends: Rows
    """Of frontends and decoders, which work on whole rows."""
    hidden: Rows
    """Of the student's hidden states, where no linear is at work: as of ``ends``, or all."""

    def column(self, in_features: int, out_features: int) -> nn.Module:
        """Whole input -> this rank's part of the output."""
        ...

    def row(self, in_features: int, out_features: int) -> nn.Module:
        """This rank's part of the input -> whole output."""
        ...

    def embedding(self, num_embeddings: int, dim: int, padding_index: int) -> nn.Module:
        """Token numbers -> whole vectors; the padding's row gets no gradient."""
        ...

    def into_blocks(self, x: Tensor, num_rows: int) -> Tensor:
        """From a frontend to the blocks: rows of ``ends``, ``num_rows`` in all, -> rows of ``hidden``."""
        ...

    def out_of_blocks(self, x: Tensor) -> Tensor:
        """From the blocks to a decoder: rows of ``hidden`` -> rows of ``ends``."""
        ...

    def shared(self, x: Tensor) -> Tensor:
        """A whole tensor of which each rank uses what its heads need: its gradient is the sum over the ranks."""
        ...


class PlainLinears:
    """One rank: torch's own modules."""

    rank = 0
    size = 1
    ends: Rows = ALL_ROWS
    hidden: Rows = ALL_ROWS

    def column(self, in_features: int, out_features: int) -> nn.Module:
        """``nn.Linear``."""
        return nn.Linear(in_features, out_features)

    def row(self, in_features: int, out_features: int) -> nn.Module:
        """``nn.Linear``."""
        return nn.Linear(in_features, out_features)

    def embedding(self, num_embeddings: int, dim: int, padding_index: int) -> nn.Module:
        """``nn.Embedding``."""
        return nn.Embedding(num_embeddings, dim, padding_idx=padding_index)

    def into_blocks(self, x: Tensor, num_rows: int) -> Tensor:
        """As it is."""
        return x

    def out_of_blocks(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def shared(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def own_draws(self, device: torch.device) -> AbstractContextManager[None]:
        """Nothing to separate."""
        return nullcontext()


PLAIN = PlainLinears()
