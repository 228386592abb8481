"""What is alive while the networks are built, and whether they begin as those of one process do."""

from typing import Any

import torch
from torch import Tensor

from model.data2vec import Data2Vec
from model.initialization import initialize
from pretrain import build
from pretrain.config import RunConfig
from pretrain.parallel.fragments import Fragment
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.zero import StudentEngine
from tests.distributed.allocations import Allocations

_build = build.build_networks


class Building:
    """Stands in for ``pretrain.build.build_networks``, which it calls.

    Attributes:
        counted: bytes: the most that was alive until the student was handed to the engine, the most of all, what
            stayed; names of weights of which this rank has others than one process would.
    """

    def __init__(self) -> None:
        self.counted: dict[str, Any] = {}

    def __call__(
        self, config: RunConfig, settings: dict[str, Any], groups: ProcessGroups, device: torch.device
    ) -> tuple[StudentEngine, ShardedTeacher]:
        """Build."""
        allocations = Allocations()

        def counting(*arguments: Any) -> StudentEngine:
            self.counted["student"] = allocations.peak
            return StudentEngine(*arguments)

        build.StudentEngine = counting  # type: ignore[assignment, misc]
        with allocations:
            engine, teacher = _build(config, settings, groups, device)
        self.counted |= {"peak": allocations.peak, "after": allocations.alive()}
        whole = Data2Vec(config.model)
        initialize(whole, config.training.seed)
        weights = {name: weight.detach() for name, weight in whole.named_parameters()}
        pieces = engine.fragments
        self.counted["others"] = [one.name for one in pieces if not one.master.equal(_part(weights[one.name], one))]
        return engine, teacher


def _part(whole: Tensor, piece: Fragment) -> Tensor:
    """What a fragment is of a whole weight; no part has padding in the models of ``synthetic``."""
    cut = piece.place.cut
    return (whole if cut is None else cut.of(whole)).reshape(-1)[piece.start : piece.stop]
