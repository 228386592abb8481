"""Tensor parallelism: megatron-core's linears and embedding behind ``model.linear.LinearFactory``."""

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from torch import Tensor, nn

from model.linear import Cut, EmbeddingPart, LinearPart, mark_cut
from model.rows import ALL_ROWS, Rows
from pretrain.parallel import sequence
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.rows import SplitRows, own_draws


class MegatronLinears:
    """Linears and embeddings of which each rank of a group holds a part; frontends and decoders share rows.

    Weights are drawn by ``model.initialization``: megatron's own initialisation is off.
    """

    def __init__(self, groups: ProcessGroups, *, sequence_parallel: bool = False) -> None:
        """Args: whose tensor-parallel ranks share each linear; whether hidden states are split by rows, too.

        They are where a gradient is wanted: without one (teacher) nothing is kept that it would make smaller.
        """
        self.rank, self.size = groups.tp_rank, groups.tp_size
        self._group = groups.tp_group
        self._sequence_parallel = sequence_parallel
        self.ends: Rows = SplitRows(self._group)
        self.hidden: Rows = self.ends if sequence_parallel else ALL_ROWS
        self._config = ModelParallelConfig(
            tensor_model_parallel_size=self.size, use_cpu_initialization=True, perform_initialization=False
        )

    def column(self, in_features: int, out_features: int) -> nn.Module:
        """Rows of the weight are cut, and with them the output."""
        linear = _Column(in_features, out_features, **self._options(), gather_output=False)
        linear.rows_group = self._group if self._sequence_parallel else None
        self._mark(linear.weight, 0, out_features)
        self._mark(linear.bias, 0, out_features)
        return linear

    def row(self, in_features: int, out_features: int) -> nn.Module:
        """Columns of the weight are cut, and with them the input; the bias is whole on every rank."""
        linear = _Row(in_features, out_features, **self._options(), input_is_parallel=True)
        linear.rows_group = self._group if self._sequence_parallel else None
        self._mark(linear.weight, 1, in_features)
        return linear

    def embedding(self, num_embeddings: int, dim: int, padding_index: int) -> nn.Module:
        """Rows of the table are cut; the last rank's part may end in rows that no token has."""
        padded = -(-num_embeddings // self.size) * self.size
        table = _Vocabulary(padded, dim, init_method=_no_draw, config=self._config, tp_group=self._group)
        table.padding_index = padding_index
        self._mark(table.weight, 0, num_embeddings)
        return table

    def into_blocks(self, x: Tensor, num_rows: int) -> Tensor:
        """An all-gather, unless hidden states stay split."""
        return x if self._splits_hidden else self.ends.join(x, num_rows)

    def out_of_blocks(self, x: Tensor) -> Tensor:
        """This rank's share; the backward pass gathers, unless hidden states are split."""
        return x if self._splits_hidden else self.ends.split(x)

    def shared(self, x: Tensor) -> Tensor:
        """Identity; its backward pass sums over the ranks."""
        (alike,) = self.ends.shared(x)
        return alike

    def own_draws(self, device: torch.device) -> AbstractContextManager[None]:
        """Draws inside depend on the rank."""
        return own_draws(self.rank, device)

    @property
    def _splits_hidden(self) -> bool:
        return self._sequence_parallel and torch.is_grad_enabled()

    def _options(self) -> dict[str, Any]:
        return {
            "config": self._config,
            "init_method": _no_draw,
            "bias": True,
            "skip_bias_add": False,
            "tp_group": self._group,
        }

    def _mark(self, parameter: nn.Parameter, dim: int, whole: int) -> None:
        mark_cut(parameter, Cut(dim, self.rank, self.size, whole))


class _Column(ColumnParallelLinear, LinearPart):
    rows_group: dist.ProcessGroup | None
    """The ranks that hidden states are split over, if they are."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out / size)."""
        if self.rows_group is not None and torch.is_grad_enabled():
            return sequence.column(x, self.weight, self.bias, self.rows_group)
        return super().forward(x)[0]


class _Row(RowParallelLinear, LinearPart):
    rows_group: dist.ProcessGroup | None
    """The ranks that hidden states are split over, if they are."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in / size) -> (..., out)."""
        if self.rows_group is not None and torch.is_grad_enabled():
            return sequence.row(x, self.weight, self.bias, self.rows_group)
        return super().forward(x)[0]


class _Vocabulary(VocabParallelEmbedding, EmbeddingPart):
    padding_index: int

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, T) -> (B, T, D); as ``nn.Embedding``, without gradient for the padding's row."""
        vectors = super().forward(tokens)
        return torch.where((tokens == self.padding_index).unsqueeze(-1), vectors.detach(), vectors)


def _no_draw(weight: Tensor) -> None:
    raise AssertionError("model.initialization draws the weights")
