"""One step's microbatches, forward and backward: gradients accumulate, and somebody watches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from data_pipelines.batches.base import Batch
from model.losses import LossTerm
from pretrain.parallel.watch import Watch
from pretrain.parallel.zero import StudentEngine
from pretrain.task import Data2VecTask, Observation


class Witness(Protocol):
    """Is told of every microbatch."""

    def __call__(self, modality: str, shares: dict[str, Tensor], observe: Callable[[], Observation]) -> None:
        """What this rank sees of a microbatch.

        Args:
            modality: of it.
            shares: weighted loss terms, divided by the global counts; empty where the losses are not.
            observe: makes the tensors for spread and health, which few steps look at; called inside or not at all.
        """
        ...


class Schedule(Protocol):
    """Which parts of which microbatches run when."""

    def accumulate(
        self, batches: Sequence[Batch], positions: Mapping[str, int], totals: Mapping[str, float], witness: Witness
    ) -> None:
        """Add the gradients of a step's microbatches to the parameters that are here.

        Args:
            batches: this rank's, in the order of the step.
            positions: of the modalities' streams at the start of the step.
            totals: counts of the loss terms over all ranks.
            witness: told of every microbatch.
        """
        ...


class SequentialSchedule:
    """The whole model is here: one microbatch after the other."""

    def __init__(self, task: Data2VecTask, engine: StudentEngine, watch: Watch) -> None:
        """Args: what is done with a microbatch; whose gradients accumulate; told of what goes on."""
        self._task = task
        self._engine = engine
        self._watch = watch

    def accumulate(
        self, batches: Sequence[Batch], positions: Mapping[str, int], totals: Mapping[str, float], witness: Witness
    ) -> None:
        """See ``Schedule``."""
        for number, batch in enumerate(batches):
            with self._watch.phase(f"computing microbatch {number}"):
                self._engine.backward(self._loss(batch, positions[batch.modality], totals, witness))

    def _loss(self, batch: Batch, position: int, totals: Mapping[str, float], witness: Witness) -> Tensor:
        """A part of the global loss; what only the witness looks at does not stay for the backward pass."""
        terms, observe = self._task(batch, position)
        shares = weighted_shares(terms, totals)
        witness(batch.modality, shares, observe)
        return total_of(shares)


def weighted_shares(terms: Mapping[str, LossTerm], totals: Mapping[str, float]) -> dict[str, Tensor]:
    """A microbatch's part of each weighted term of the global loss."""
    return {name: term.weight * term.sum / totals[name] for name, term in terms.items()}


def total_of(shares: Mapping[str, Tensor]) -> Tensor:
    """A microbatch's part of the global loss."""
    return torch.stack(list(shares.values())).sum()
