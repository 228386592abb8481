"""``python -m benchmarks.step_time``: one training step on this machine, part by part, as one JSON line.

Medians over the rounds of teacher forward, student forward, backward and the average of a recipe at a given batch
and number of views, without optimizer and communication, as the reference was timed (data2vec2-facts.md section 7:
CPU seconds per step of fairseq on 2 threads of a shared machine, on another day; compare with care).
"""

import argparse
import dataclasses
import json
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from model import ema
from model.accounting import train_flops_per_sample
from model.config import ModelConfig
from model.data2vec import Data2Vec
from model.initialization import initialize
from model.losses import objective
from model.masking import block_masks_2d, split_views
from pretrain.recipes.registry import recipe

REFERENCE_CPU_SECONDS = {
    ("image-base", 2, 1): 2.6,
    ("image-base", 2, 8): 6.4,
    ("image-base", 2, 16): 15.7,
    ("image-base", 4, 8): 14.6,
    ("image-base", 4, 16): 26.9,
}
"""Median CPU seconds per step of the reference in fp32 by (recipe, batch, views); of several runs the lowest median."""
BASELINE = "fairseq 3d262bb2, fp32, 2 threads, another day and load (data2vec2-facts.md section 7)"


class Stopwatch:
    """Wall and CPU seconds by part, one value a round."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, list[float]] = defaultdict(list)

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        """Run ``work`` and keep its times."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.wall[name].append(time.perf_counter() - wall)
        self.cpu[name].append(time.process_time() - cpu)
        return result


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """The median of each part, and of whole steps."""
    steps = [sum(parts) for parts in zip(*times.values(), strict=True)]
    return {name: round(statistics.median(values), 4) for name, values in (times | {"step": steps}).items()}


def main() -> None:
    """Measure and print."""
    options = _parser().parse_args()
    device = torch.device(options.device)
    config = dataclasses.replace(recipe(options.recipe).model, num_views=options.views)
    watch = measure(config, options.batch_size, device, getattr(torch, options.dtype), options.repeats)
    print(json.dumps(report(options, config, watch)))


def measure(config: ModelConfig, batch_size: int, device: torch.device, dtype: torch.dtype, repeats: int) -> Stopwatch:
    """Time ``repeats`` steps after one that warms up."""
    student = Data2Vec(config)
    initialize(student, 0)
    teacher = Data2Vec(config, with_decoders=False)
    shared = {name: value for name, value in student.state_dict().items() if name in teacher.state_dict()}
    teacher.load_state_dict(shared)
    student, teacher = student.to(device, dtype), teacher.to(device, dtype).eval()
    masters = [p.detach().float() for p in teacher.parameters()]
    averages = [master.clone() for master in masters]
    image, generator = config.image, torch.Generator().manual_seed(0)
    source = torch.randn(batch_size, image.in_channels, image.image_size, image.image_size).to(device, dtype)
    masks = block_masks_2d(batch_size * config.num_views, image.grid_size, image.mask, generator)
    views = split_views(masks.view(batch_size, config.num_views, -1).to(device), image.num_kept)
    watch = Stopwatch(device)
    for round_number in range(repeats + 1):
        if round_number == 1:
            watch = Stopwatch(device)
        with torch.no_grad():
            goal = watch.time("teacher_forward", lambda: teacher.targets(source))

        def forward(targets: torch.Tensor = goal.targets) -> torch.Tensor:
            noise = torch.randn(*views.removed.shape, config.encoder.dim, device=device, dtype=dtype)
            out = student(source, views, noise * image.decoder.noise_std)
            terms = objective(config, out, targets, views, source).values()
            return torch.stack([term.weight * term.sum / term.count for term in terms]).sum()

        loss = watch.time("student_forward", forward)
        watch.time("backward", loss.backward)
        watch.time("ema", lambda: ema.lerp_(averages, masters, 0.9998))
        student.zero_grad()
    return watch


def report(options: argparse.Namespace, config: ModelConfig, watch: Stopwatch) -> dict[str, Any]:
    """The figures, with the ratio to the reference where it was measured."""
    wall, cpu = medians(watch.wall), medians(watch.cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    baseline = REFERENCE_CPU_SECONDS.get((options.recipe, options.batch_size, options.views))
    comparable = baseline if options.device == "cpu" and options.dtype == "float32" else None
    return {
        "recipe": options.recipe,
        "batch_size": options.batch_size,
        "views": options.views,
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "images_per_second": round(options.batch_size / wall["step"], 3),
        "tflops_per_second": round(options.batch_size * train_flops_per_sample(config) / wall["step"] / 1e12, 4),
        "peak_memory_gib": round(peak, 2),
        "reference_cpu_seconds": comparable,
        "reference": BASELINE if comparable else None,
        "cpu_seconds_over_reference": round(cpu["step"] / comparable, 3) if comparable else None,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_time", description=__doc__)
    parser.add_argument("--recipe", default="image-base")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
