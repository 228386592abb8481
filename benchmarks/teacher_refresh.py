"""``torchrun --nproc-per-node 2 -m benchmarks.teacher_refresh``: what keeping a teacher costs a step, as one JSON line.

Medians over the steps of a recipe at a given batch and number of views, on every rank: the whole step, the average's
update, and how long the teacher waits for its weights. What hides behind the student's forward pass is not counted;
for a resident teacher over gloo ``in_flight`` tells how long the all-gather took and which share of that time the next
step's student was running. Rank 0 prints.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from data_pipelines.batches.base import Batch
from model.config import ModelConfig
from pretrain.build import DTYPES, build_networks, choose_device
from pretrain.config import RunConfig
from pretrain.environment import read_environment
from pretrain.masking import masking_of
from pretrain.parallel.deepspeed_config import deepspeed_config
from pretrain.parallel.grid import make_grid
from pretrain.parallel.groups import make_groups
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.teacher_gather import Arrival, FlatGather, SplitGather
from pretrain.parallel.zero import StudentEngine, join_processes, leave_processes
from pretrain.recipes.registry import recipe
from pretrain.sections import ParallelSection, PrecisionSection
from pretrain.task import Data2VecTask


class Exposed:
    """Seconds per step in which the caller waited for watched functions; calls within others count as theirs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inside = False
        self.seconds: dict[str, float] = defaultdict(float)

    def watch(self, owner: Any, function: str, label: str) -> None:
        """Count the calls of ``owner.function`` under ``label``."""
        original = getattr(owner, function)

        def timed(*args: Any, **options: Any) -> Any:
            return original(*args, **options) if self._inside else self.time(label, original, *args, **options)

        setattr(owner, function, timed)

    def time(self, label: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call ``function`` and count it."""
        self._wait()
        start, self._inside = time.perf_counter(), True
        result = function(*args, **options)
        self._wait()
        self._inside = False
        self.seconds[label] += time.perf_counter() - start
        return result

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


Interval = tuple[float, float]


class Flights:
    """When resident weights were on their way, and when the student ran."""

    def __init__(self, task: Data2VecTask) -> None:
        self.gathers: list[Interval] = []
        self.students: list[Interval] = []
        student = task.student
        task.student = partial(self._student, student)  # type: ignore[method-assign]
        for kind in (FlatGather, SplitGather):
            self._watch(kind)

    def _student(self, student: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        output = student(*args)
        self.students.append((start, time.perf_counter()))
        return output

    def _watch(self, kind: Any) -> None:
        original = kind.all

        def timed(gather: Any, into: torch.Tensor) -> Arrival:
            start = time.perf_counter()
            arrival: Arrival = original(gather, into)
            for work in arrival.works:
                work.get_future().then(lambda _: self.gathers.append((start, time.perf_counter())))
            return arrival

        kind.all = timed

    def figures(self) -> dict[str, float] | None:
        """Median seconds of an all-gather, and the share of it in which the student ran."""
        pairs = list(zip(self.gathers, self.students[1:], strict=False))[1:]  # the first step warms up
        if not pairs:
            return None
        seconds = [stop - start for (start, stop), _ in pairs]
        hidden = [max(0.0, min(stop, until) - max(start, since)) for (start, stop), (since, until) in pairs]
        return {
            "seconds": round(statistics.median(seconds), 4),
            "share_beside_student": round(sum(hidden) / sum(seconds), 3),
        }


def main() -> None:
    """Measure and print."""
    options = _parser().parse_args()
    processes = read_environment(os.environ)
    config = run_config(options)
    device, backend = choose_device(processes)
    join_processes(processes, backend)
    groups = make_groups(make_grid(config.parallel, config.model, processes.world_size))
    ds_config = deepspeed_config(
        config.optim,
        config.precision,
        config.parallel,
        microbatch_size=options.batch_size,
        dp_size=groups.dp_size,
    )
    engine, teacher = build_networks(config, ds_config, groups, device)
    task = Data2VecTask(config.model, engine, teacher, device=device, dtype=DTYPES[options.dtype], seed=0)
    flights = Flights(task) if backend == "gloo" else None
    steps = measure(options, config.model, task, engine, teacher, device, groups.dp_rank)
    if processes.rank == 0:
        flown = flights.figures() if flights else None
        print(json.dumps(report(options, processes.world_size, teacher, steps) | {"in_flight": flown}))


def run_config(options: argparse.Namespace) -> RunConfig:
    """The recipe with the asked views and layout."""
    config = recipe(options.recipe)
    if config.model.image is None:
        raise SystemExit(f"{options.recipe}: only recipes of images are measured")
    image = dataclasses.replace(config.model.image, num_views=options.views)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, image=image),
        precision=PrecisionSection(dtype=options.dtype),
        parallel=ParallelSection(zero_stage=options.zero_stage, teacher=options.teacher),
    )


def measure(
    options: argparse.Namespace,
    model: ModelConfig,
    task: Data2VecTask,
    engine: StudentEngine,
    teacher: ShardedTeacher,
    device: torch.device,
    dp_rank: int,
) -> list[dict[str, float]]:
    """Seconds of each step's parts, after two steps that warm up."""
    batch, steps = make_batch(model, options.batch_size, dp_rank), []
    exposed = Exposed(device)
    exposed.watch(teacher, "update", "ema")
    for owner, function in ((Arrival, "wait"), *((kind, "some") for kind in (FlatGather, SplitGather))):
        exposed.watch(owner, function, "refresh")
    for number in range(options.steps + 2):
        exposed.seconds.clear()
        start = time.perf_counter()
        terms, _ = task(batch, 0)
        engine.backward(torch.stack([term.weight * term.sum / term.count for term in terms.values()]).sum())
        engine.step(lr=1e-4, eps=1e-8)
        teacher.update(0.999)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            steps.append({"step": time.perf_counter() - start, **exposed.seconds})
    teacher.ready()  # no gather may be in flight when the processes part
    return steps


def make_batch(model: ModelConfig, batch_size: int, dp_rank: int) -> Batch:
    """Random images with masks."""
    assert model.image is not None
    size, generator = model.image.image_size, torch.Generator().manual_seed(dp_rank)
    mask = masking_of(model, "image").masks(range(batch_size), [size] * batch_size)
    return Batch(
        modality="image",
        position=0,
        source=torch.randn(batch_size, model.image.in_channels, size, size, generator=generator),
        mask=mask,
        num_kept=model.image.num_kept,
        padding=None,
        sample=torch.arange(batch_size),
        epoch=torch.zeros(batch_size, dtype=torch.int64),
    )


def report(
    options: argparse.Namespace, num_processes: int, teacher: ShardedTeacher, steps: list[dict[str, float]]
) -> dict[str, Any]:
    """The figures: medians, and shares of the step by step."""
    parts = {name: [step.get(name, 0.0) for step in steps] for name in ("step", "ema", "refresh")}
    shares = [(step.get("ema", 0.0) + step.get("refresh", 0.0)) / step["step"] for step in steps]
    return {
        **{
            name: getattr(options, name) for name in ("recipe", "batch_size", "views", "dtype", "zero_stage", "teacher")
        },
        "processes": num_processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "seconds": {name: round(statistics.median(values), 4) for name, values in parts.items()},
        "share_of_step": round(statistics.median(shares), 4),
        "fp32_bytes_per_rank": teacher.shard.numel() * teacher.shard.element_size(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchrun -m benchmarks.teacher_refresh", description=__doc__)
    parser.add_argument("--recipe", default="image-base")
    parser.add_argument("--batch-size", type=int, default=2, help="of every process")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--teacher", choices=("auto", "resident", "gathered"), default="auto")
    parser.add_argument("--steps", type=int, default=5)
    return parser


if __name__ == "__main__":
    main()
    leave_processes()
