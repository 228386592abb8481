"""Tensor parallelism: megatron-core's linears and embedding behind ``model.linear.LinearFactory``."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from torch import Tensor, nn

from model.linear import Cut, EmbeddingPart, LinearPart, mark_cut
from pretrain.parallel.groups import ProcessGroups


class MegatronLinears:
    """Linears and embeddings of which each rank of a group holds a part.

    Weights are drawn by ``model.initialization``: megatron's own initialisation is off.
    """

    def __init__(self, groups: ProcessGroups) -> None:
        """Args: whose tensor-parallel ranks share each linear."""
        self.rank, self.size = groups.tp_rank, groups.tp_size
        self._group = groups.tp_group
        self._config = ModelParallelConfig(
            tensor_model_parallel_size=self.size, use_cpu_initialization=True, perform_initialization=False
        )

    def column(self, in_features: int, out_features: int) -> nn.Module:
        """Rows of the weight are cut, and with them the output."""
        linear = _Column(in_features, out_features, **self._options(), gather_output=False)
        self._mark(linear.weight, 0, out_features)
        self._mark(linear.bias, 0, out_features)
        return linear

    def row(self, in_features: int, out_features: int) -> nn.Module:
        """Columns of the weight are cut, and with them the input; the bias is whole on every rank."""
        linear = _Row(in_features, out_features, **self._options(), input_is_parallel=True)
        self._mark(linear.weight, 1, in_features)
        return linear

    def embedding(self, num_embeddings: int, dim: int, padding_index: int) -> nn.Module:
        """Rows of the table are cut; the last rank's part may end in rows that no token has."""
        padded = -(-num_embeddings // self.size) * self.size
        table = _Vocabulary(padded, dim, init_method=_no_draw, config=self._config, tp_group=self._group)
        table.padding_index = padding_index
        self._mark(table.weight, 0, num_embeddings)
        return table

    def shared(self, x: Tensor) -> Tensor:
        """Identity; its backward pass sums over the ranks."""
        return copy_to_tensor_model_parallel_region(x, self._group)

    @contextlib.contextmanager
    def own_draws(self, device: torch.device) -> Iterator[None]:
        """Draws inside depend on the rank; the common stream goes on as if it had given one number."""
        seed = int(torch.randint(2**62, (), device="cpu"))
        before = _state(device)
        torch.manual_seed(seed ^ self.rank)
        try:
            yield
        finally:
            _restore(device, before)

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
    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out / size)."""
        return super().forward(x)[0]


class _Row(RowParallelLinear, LinearPart):
    def forward(self, x: Tensor) -> Tensor:
        """(..., in / size) -> (..., out)."""
        return super().forward(x)[0]


class _Vocabulary(VocabParallelEmbedding, EmbeddingPart):
    padding_index: int

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (B, T) -> (B, T, D); as ``nn.Embedding``, without gradient for the padding's row."""
        vectors = super().forward(tokens)
        return torch.where((tokens == self.padding_index).unsqueeze(-1), vectors.detach(), vectors)


def _no_draw(weight: Tensor) -> None:
    raise AssertionError("model.initialization draws the weights")


def _state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
