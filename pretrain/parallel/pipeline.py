"""megatron-core's pipeline schedule: one forward, one backward pass in turn on every stage (1F1B)."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pretrain.parallel.exchange import Exchange

with warnings.catch_warnings():  # megatron tells of every optional library that it does without
    warnings.simplefilter("ignore")
    from megatron.core.enums import ModelType
    from megatron.core.pipeline_parallel.schedules import forward_backward_pipelining_without_interleaving
    from megatron.core.transformer.transformer_config import TransformerConfig

Forward = Callable[[int, Tensor | None], Tensor]
"""Number of a microbatch and the hidden state that came for it (None in the first stage) -> the hidden state that goes
on, or in the last stage the loss."""


class Pipeline:
    """Runs microbatches through this stage, forward and backward."""

    def __init__(self, exchange: Exchange, device: torch.device) -> None:
        """Args: how stages talk; where this one computes."""
        self._exchange = exchange
        self._device = device
        # The schedule scales a loss that comes with a count by nothing but what this says: by nothing.
        with warnings.catch_warnings():  # of its own defaults
            warnings.simplefilter("ignore")
            exchange.config = TransformerConfig(
                num_layers=1, hidden_size=1, num_attention_heads=1, calculate_per_token_loss=True
            )

    def run(self, num_microbatches: int, forward: Forward) -> None:
        """All of a step's microbatches; gradients accumulate in the parameters.

        Args:
            num_microbatches: of the step; ``exchange.start`` has got their shapes.
            forward: called for each in order.
        """
        stage, groups = _Stage(self._exchange.config), self._exchange.groups

        def forward_step(numbers: Iterator[int], stage: _Stage) -> tuple[Tensor, Callable[[Tensor], Any]]:
            output = forward(next(numbers), stage.arrived)
            nothing_to_count = torch.zeros((), dtype=torch.int, device=self._device)
            return output, lambda loss: (loss, nothing_to_count, None)

        alone = SimpleNamespace(size=lambda: 1)
        with self._allocations():
            forward_backward_pipelining_without_interleaving(
                forward_step_func=forward_step,
                data_iterator=iter(range(num_microbatches)),
                model=stage,
                num_microbatches=num_microbatches,
                seq_length=1,
                micro_batch_size=1,
                p2p_communicator=self._exchange,
                pg_collection=SimpleNamespace(
                    tp=groups.tp_group, pp=groups.pp_group, cp=alone, dp_cp=groups.dp_group, embd=None, pos_embd=None
                ),
            )

    def _allocations(self) -> AbstractContextManager[Any]:
        return _CudaMeansCpu() if self._device.type == "cpu" else nullcontext()


class _Stage:
    """What the schedule takes for the model."""

    model_type = ModelType.encoder_or_decoder

    def __init__(self, config: TransformerConfig) -> None:
        self.config = config
        self.arrived: Tensor | None = None

    def set_input_tensor(self, tensors: list[Tensor | None]) -> None:
        """Called before every forward pass with what came."""
        (self.arrived,) = tensors


class _CudaMeansCpu(TorchFunctionMode):
    """The schedule allocates a counter on "cuda", whatever there is."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") == "cuda":
            kwargs = kwargs | {"device": "cpu"}
        return func(*args, **kwargs)
