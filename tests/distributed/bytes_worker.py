"""Worker of test_bytes: counts live tensors while a case is built, and these and collectives in one of its steps."""

import dataclasses
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

from pretrain import build
from pretrain.config import RunConfig
from pretrain.environment import Processes, read_environment
from pretrain.parallel.zero import leave_processes
from pretrain.preempt import StopRequest
from pretrain.sections import ParallelSection
from pretrain.trainer import Trainer
from tests.distributed.allocations import PATIENCE
from tests.distributed.building import Building
from tests.distributed.collectives import Collectives
from tests.distributed.layout_worker import forget_groups
from tests.distributed.synthetic import SyntheticMixture, run_config

build.build_mixture = SyntheticMixture  # type: ignore[assignment]
build.check_vocabulary = lambda config: None  # there are no shards

Storages = dict[int, int]
"""Bytes by address."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One layout; passed as JSON."""

    name: str
    parallel: dict
    """The section."""
    modality: str = "image"
    dtype: str = "bf16"
    engine: dict = dataclasses.field(default_factory=dict)
    """A user's ``zero_optimization``."""

    @property
    def config(self) -> RunConfig:
        """The run: reports come after the step that is watched."""
        config = run_config([self.modality], ParallelSection(**self.parallel))
        return dataclasses.replace(
            config,
            precision=dataclasses.replace(config.precision, dtype=self.dtype),
            logging=dataclasses.replace(config.logging, every_steps=1000),
            health=dataclasses.replace(config.health, every_steps=1000),
        )


def storages(tensors: Iterable[Any]) -> Storages:
    """Of whatever are tensors with memory, but for single numbers and flags that meters and optimizers keep."""
    found = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            is_number = storage.nbytes() <= 8 and (tensor.dim() == 0 or tensor.dtype == torch.bool)
            if storage.nbytes() and not is_number:
                found[storage.data_ptr()] = storage.nbytes()
    return found


def everything() -> Storages:
    """Every tensor of this process, once gloo's threads have let go of what the last collectives moved."""
    time.sleep(PATIENCE)
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects warn of being looked at
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    return storages([*tensors, *(one.grad for one in tensors if one.is_leaf and one.grad is not None)])


class Census:
    """Live tensors of a trainer by what they hold."""

    def __init__(self, trainer: Trainer, before: Storages) -> None:
        self._trainer = trainer
        self._before = before
        self.batches: list[Any] = []

    def weights(self) -> Storages:
        parameters = list(self._trainer._engine.module.parameters())
        return storages([*parameters, *(getattr(one, "ds_tensor", None) for one in parameters)])

    def optimizer(self) -> Storages:
        engine = self._trainer._engine
        moments = [value for state in engine._adam.state.values() for value in state.values()]
        return storages([*engine._handles.partitions, *moments])

    def __call__(self) -> dict[str, int]:
        trainer, teacher = self._trainer, self._trainer._teacher
        named = {
            "weights": self.weights(),
            "optimizer": self.optimizer(),
            "teacher_shard": storages([teacher.shard]),
            "teacher_weights": storages(teacher.module.parameters()),
            "tables": storages([*trainer._engine.module.buffers(), *teacher.module.buffers()]),
            "batch": storages(tree_leaves([vars(one) for one in self.batches])),
            "seen": storages(tree_leaves(list(trainer._seen.values()))),
        }
        rest = everything()
        counted: dict[str, int] = {}
        for name, found in named.items():
            counted[name] = sum(size for place, size in found.items() if place in rest)
            rest = {place: size for place, size in rest.items() if place not in found}
        counted["rest"] = sum(size for place, size in rest.items() if place not in self._before)
        return counted


def watch(trainer: Trainer, census: Census, collectives: Collectives) -> dict[str, Any]:
    """One step: what is alive before the optimizer's step and after everything, and what travels."""
    engine, teacher, seen = trainer._engine, trainer._teacher, {}
    step, backward = engine.step, engine.backward

    def counted_step(**options: Any) -> bool:
        seen["before_step"] = census()
        return collectives.within("step", step)(**options)

    def counted_backward(loss: torch.Tensor) -> None:
        seen["weights_after_forward"] = sum(census.weights().values())
        collectives.within("backward", backward)(loss)

    engine.step, engine.backward = counted_step, counted_backward  # type: ignore[method-assign]
    teacher.update = collectives.within("refresh", teacher.update)  # type: ignore[method-assign]
    teacher.module.targets = collectives.within("teacher", teacher.module.targets)
    with collectives:
        with collectives.phase("batch"):
            census.batches, totals, _ = trainer._fetch()
        trainer._train_step(census.batches, totals)
    teacher.ready()
    seen["after_step"] = census()
    return seen


def run(case: Case, run_dir: Path, processes: Processes) -> dict[str, Any]:
    """What this rank counts of the case: while it is built, and after two steps in which everything takes its place."""
    run_dir.mkdir(parents=True, exist_ok=True)
    before = everything()
    held = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]  # lest new ones get their addresses
    user = {"zero_optimization": case.engine} if case.engine else None
    building = build.build_networks = Building()  # type: ignore[assignment]
    trainer = build.build_trainer(case.config, run_dir, processes, StopRequest(), resume="auto", user_deepspeed=user)
    trainer._throughput.start(0.0)
    for _ in range(2):
        batches, totals, _ = trainer._fetch()
        trainer._train_step(batches, totals)
    groups = trainer._groups
    named = {"dp": groups.dp_group, "tp": groups.tp_group, "pp": groups.pp_group, "model": groups.model_group}
    collectives = Collectives(named | {"world": groups.control_group})
    del batches, totals
    seen = watch(trainer, Census(trainer, before), collectives)
    trainer.close()
    held.clear()
    calls = [[*key, *counted] for key, counted in collectives.calls.items()]
    return seen | {"building": building.counted, "pp_rank": groups.pp_rank, "calls": calls}


def main() -> None:
    """Arguments: output directory, then cases."""
    out, cases = Path(sys.argv[1]), [Case(**json.loads(text)) for text in sys.argv[2:]]
    processes = read_environment(os.environ)
    for case in cases:
        result = run(case, out / case.name, processes)
        forget_groups()
        results: list[dict[str, Any]] = [{}] * processes.world_size
        dist.all_gather_object(results, result)
        if processes.rank == 0:
            (out / f"{case.name}.json").write_text(json.dumps(results))
    leave_processes()


if __name__ == "__main__":
    main()
