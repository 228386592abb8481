"""Worker of test_teacher_weights: gathers of both cuts, and the teacher's passes in both modes. No DeepSpeed."""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.data2vec import Data2Vec
from model.initialization import initialize
from pretrain.environment import read_environment
from pretrain.parallel.fragments import Fragment, Group, pack, split
from pretrain.parallel.grid import make_grid
from pretrain.parallel.groups import ProcessGroups, make_groups
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.teacher_gather import make_gather
from pretrain.parallel.teacher_weights import layers_of
from pretrain.recipes.registry import recipe
from pretrain.sections import ParallelSection
from tests.distributed.allocations import Allocations

CUTS = {"flat": pack, "split": split}
ODD = {"a": (3, 5), "b": (1,), "c": (2, 2, 2), "d": (11,), "e": (7,), "f": (40,)}


def shard_of(layout: Group, whole: dict[str, Tensor], rank: int) -> Tensor:
    """What ``rank`` would own; padding is NaN and must never be seen."""
    shard = torch.full((layout.shard_numel,), torch.nan)
    for place, start, stop, offset in layout.owned(rank):
        shard[offset : offset + stop - start] = whole[place.name].reshape(-1)[start:stop]
    return shard


def wrong_gathers(groups: ProcessGroups) -> list[str]:
    """Gathers that do not bring exactly what the shards hold, rounded to the precision."""
    whole, wrong = {name: torch.randn(shape) for name, shape in ODD.items()}, []
    for cut, make in CUTS.items():
        layout = make([(name, shape, None) for name, shape in ODD.items()], groups.dp_size)
        shard = shard_of(layout, whole, groups.dp_rank)
        for dtype in (torch.float32, torch.bfloat16):
            gather = make_gather(layout, shard, dtype, torch.device("cpu"), groups)
            into = torch.empty(gather.whole_numel, dtype=dtype)
            asked = [layout.placements, layout.placements[1:4], layout.placements[4:5], layout.placements[::2]]
            arrivals = [gather.all(into), *(gather.some(places) for places in asked[1:])]
            for places, arrival in zip(asked, arrivals, strict=True):
                for place, values in zip(places, arrival.wait(), strict=True):
                    if not torch.equal(values.view(place.shape), whole[place.name].to(dtype)):
                        wrong.append(f"{cut} {dtype} {place.name} of {len(places)}")
    return wrong


def make_teacher(cut: str, gathered: bool, groups: ProcessGroups) -> tuple[ShardedTeacher, Group]:
    module = Data2Vec(recipe("image-tiny").model, role="teacher")
    initialize(module, 0)
    whole = {name: p.detach().clone() for name, p in module.named_parameters()}
    layout = CUTS[cut]([(name, tuple(value.shape), None) for name, value in whole.items()], groups.dp_size)
    master = shard_of(layout, whole, groups.dp_rank)
    fragments = [
        Fragment(place, start, 0, offset, *(master[offset : offset + stop - start],) * 3)
        for place, start, stop, offset in layout.owned(groups.dp_rank)
    ]
    return ShardedTeacher(module, layout, fragments, groups, torch.device("cpu"), gathered=gathered), layout


def passes(cut: str, gathered: bool, groups: ProcessGroups) -> tuple[list[Tensor], dict[str, Any]]:
    """Targets of three passes (the first learns the order of layers; an update lies before the last), and bytes."""
    teacher, layout = make_teacher(cut, gathered, groups)
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    targets, peaks = [], []
    for number in range(3):
        if number == 2:
            with torch.no_grad():
                for piece, _ in teacher.fragments:
                    piece.master.add_(0.01)
            teacher.update(0.5)
        module = teacher.ready()
        with Allocations() as allocations:
            allocations.ignore([*module.parameters(), *module.buffers(), teacher.shard, images])
            targets.append(module.targets(images, modality="image").targets)
        peaks.append(allocations.peak)
    module = teacher.ready()
    numels = {place.name: place.numel for place in layout.placements}
    layers = [
        sum(numel for name, numel in numels.items() if name.startswith(f"{prefix}."))
        for prefix, part in module.named_modules()
        if part in set(layers_of(module))
    ]
    return targets, {
        "peaks": peaks,
        "at_rest": sum(p.numel() * p.element_size() for p in module.parameters()),
        "shard": teacher.shard.numel() * teacher.shard.element_size(),
        "whole": sum(numels.values()) * 4,
        "largest_layer": max(layers) * 4,
        "parameters": len(numels),
    }


def flies_beside_the_student(cut: str, groups: ProcessGroups) -> bool:
    """Whether a student's pass ends while the all-gather of an update is in flight.

    Rank 0 updates and runs the student; the others begin their update only then, so that the gather cannot have ended.
    """
    teacher, _ = make_teacher(cut, False, groups)
    teacher.ready()
    if groups.dp_rank > 0:
        dist.barrier(groups.control_group)
    teacher.update(0.5)
    in_flight = True
    if groups.dp_rank == 0:
        student = Data2Vec(recipe("image-tiny").model)
        initialize(student, 0)
        student.features(torch.randn(2, 1, 28, 28), modality="image").sum().backward()
        arrival = teacher._weights._arrival  # type: ignore[attr-defined]
        in_flight = not any(work.is_completed() for work in arrival.works)
        dist.barrier(groups.control_group)
    teacher.ready()
    return in_flight


def main() -> None:
    """Argument: output directory."""
    out = Path(sys.argv[1])
    processes = read_environment(os.environ)
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    groups = make_groups(make_grid(ParallelSection(), recipe("image-tiny").model, processes.world_size))
    result: dict[str, Any] = {"wrong_gathers": wrong_gathers(groups), "differ": []}
    reference: list[Tensor] | None = None
    for cut in CUTS:
        if groups.dp_size > 1:
            result[f"{cut}-in-flight"] = flies_beside_the_student(cut, groups)
        for mode in ("resident", "gathered"):
            targets, result[f"{cut}-{mode}"] = passes(cut, mode == "gathered", groups)
            reference = reference or targets
            if not all(torch.equal(one, other) for one, other in zip(targets, reference, strict=True)):
                result["differ"].append(f"{cut}-{mode}")
    results: list[dict[str, Any]] = [{}] * processes.world_size
    dist.all_gather_object(results, result)
    if processes.rank == 0:
        (out / f"teacher-{processes.world_size}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    dist.destroy_process_group()
    gc.collect()  # hooks refer to the groups in circles; a group that is freed waits for its threads
