"""``torchrun --nproc-per-node 2 -m benchmarks.planned_memory "image-base --parallel.tp-size=2" ...``: bytes that the
planner expects beside bytes of tensors that are alive, on the rank that holds most; one JSON line per case.

Every case is a recipe and its fields. Student (weights), optimizer (fp32 weights and moments), teacher (fp32 shard and
compute weights) are counted by storage; activations, with buckets and weights that come for a layer at a time, as the
most that is alive at once beside all that was there, in the second of two steps without an update.
"""

import gc
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.batches.base import Batch, kept_per_view
from deploy.plan.activations import activation_bytes
from deploy.plan.memory import state_bytes
from deploy.plan.shapes import microbatches
from pretrain.build import DTYPES, build_networks, choose_device, make_schedule
from pretrain.config import RunConfig, with_overrides
from pretrain.environment import read_environment
from pretrain.masking import masking_of
from pretrain.parallel.deepspeed_config import deepspeed_config
from pretrain.parallel.grid import Grid, make_grid
from pretrain.parallel.groups import make_groups
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.watch import Watch
from pretrain.parallel.zero import StudentEngine, join_processes, leave_processes
from pretrain.recipes.registry import recipe
from pretrain.task import Data2VecTask
from tests.distributed.allocations import Allocations
from tests.unit.deploy.plan.live import make_source

PARTS = ("student", "optimizer", "teacher", "activations")


def main() -> None:
    """Measure every case; rank 0 prints."""
    processes = read_environment(os.environ)
    device, backend = choose_device(processes)
    join_processes(processes, backend)
    for case in sys.argv[1:]:
        name, *overrides = case.split()
        config = with_overrides(recipe(name), [*overrides, "--data.num-workers=0"])
        grid = make_grid(config.parallel, config.model, processes.world_size)
        measured = measure(config, grid, device)
        everyone: list[dict[str, int]] = [{}] * processes.world_size
        dist.all_gather_object(everyone, measured)
        if processes.rank == 0:
            print(json.dumps(report(case, config, grid, everyone)), flush=True)
        forget()


def measure(config: RunConfig, grid: Grid, device: torch.device) -> dict[str, int]:
    """Bytes of this rank."""
    groups = make_groups(grid)
    sizes = {name: config.microbatches(name, grid.dp_size)[0] for name in config.model.modalities}
    settings = deepspeed_config(
        config.optim, config.precision, config.parallel, microbatch_size=sum(sizes.values()), dp_size=grid.dp_size
    )
    engine, teacher = build_networks(config, settings, groups, device)
    dtype, watch = DTYPES[config.precision.dtype], Watch(groups.place, 600)
    task = Data2VecTask(config.model, engine, teacher, device=device, dtype=dtype, seed=0)
    schedule = make_schedule(task, engine, teacher, groups, device, dtype, watch)
    batches = [make_batch(config, one.modality, round(one.samples), one.length) for one in microbatches(config, grid)]
    batches = [batch for batch, one in zip(batches, microbatches(config, grid), strict=True) for _ in range(one.number)]
    totals: dict[str, float] = {}
    for batch in batches:
        for label, count in task.counts(batch).items():
            totals[label] = totals.get(label, 0) + count * grid.dp_size
    start = dict.fromkeys(config.model.modalities, 0)
    schedule.accumulate(batches, start, totals, lambda *_: None)
    teacher.ready()
    allocations = Allocations()
    allocations.ignore([one for one in gc.get_objects() if isinstance(one, Tensor)])
    with allocations:
        schedule.accumulate(batches, start, totals, lambda *_: None)
    watch.close()
    return held(engine, teacher) | {"activations": allocations.peak}


def held(engine: StudentEngine, teacher: ShardedTeacher) -> dict[str, int]:
    """Bytes of state, storage by storage."""
    weights = list(engine.module.parameters())
    student = storages([*weights, *(p.ds_tensor for p in weights if hasattr(p, "ds_tensor"))])
    states = [value for of_one in engine._adam.state.values() for value in of_one.values()]
    moments = [value for value in states if isinstance(value, Tensor) and value.numel() > 1]
    optimizer = storages([*engine._handles.partitions, *moments])
    return {
        "student": sum(student.values()),
        "optimizer": sum(size for key, size in optimizer.items() if key not in student),
        "teacher": sum(storages([teacher.shard, *teacher.ready().parameters()]).values()),
    }


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of every storage once."""
    return {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}


def make_batch(config: RunConfig, modality: str, num_samples: int, length: int) -> Batch:
    """Random samples with masks; all ranks may see the same."""
    mask = masking_of(config.model, modality).masks(range(num_samples), [length] * num_samples)
    return Batch(
        modality=modality,
        position=0,
        source=make_source(config, length, num_samples),
        mask=mask,
        num_kept=kept_per_view(mask),
        padding=None,
        sample=torch.arange(num_samples),
        epoch=torch.zeros(num_samples, dtype=torch.int64),
    )


def report(case: str, config: RunConfig, grid: Grid, everyone: list[dict[str, int]]) -> dict[str, Any]:
    """Measured and planned MB (1e6 bytes) of the rank that holds most, and their ratios."""
    fullest = max(range(len(everyone)), key=lambda rank: sum(everyone[rank].values()))
    stage = grid.pp_rank(fullest)
    state, activations = state_bytes(config, grid, stage), activation_bytes(config, grid, on_cpu=True)[stage]
    gathers = config.parallel.gathers_teacher
    coming = state.gathered_weights + (state.teacher_weights if gathers else 0)  # there for some layers at a time
    coming += state.buffers if config.parallel.zero_stage == 2 else 0  # a bucket that every backward pass allocates
    planned = {
        "student": state.weights,
        "optimizer": state.optimizer,
        "teacher": state.teacher_shard + (0 if gathers else state.teacher_weights),
        "activations": activations.peak + coming,
    }
    measured = everyone[fullest]
    return {
        "case": case,
        "processes": grid.world_size,
        "measured_mb": {part: round(measured[part] / 1e6, 3) for part in PARTS},
        "planned_mb": {part: round(planned[part] / 1e6, 3) for part in PARTS},
        "planned_over_measured": {part: round(planned[part] / max(measured[part], 1), 3) for part in PARTS},
        "together": round(sum(planned.values()) / sum(measured.values()), 3),
    }


def forget() -> None:
    """Megatron and DeepSpeed know one grid of ranks per process; the next case has another."""
    import deepspeed

    megatron = sys.modules.get("megatron.core.parallel_state")
    if megatron is not None:
        megatron.destroy_model_parallel()
    deepspeed.utils.groups.mpu = None
    gc.collect()


if __name__ == "__main__":
    main()
    leave_processes()
