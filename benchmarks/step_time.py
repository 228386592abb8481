"""``python -m benchmarks.step_time``: one training step on this machine, part by part, as one JSON line.

Medians over the rounds of student forward, teacher forward, loss and backward, and the average of a recipe at a given
batch and number of views, without optimizer and communication, as the reference was timed (data2vec2-facts.md section
7: CPU seconds per step of fairseq on 2 threads of a shared machine, on another day; compare with care).
"""

import argparse
import dataclasses
import json
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.reference import ReferenceStep
from model import ema
from model.accounting import train_flops_per_sample
from model.config import ModelConfig
from model.data2vec import Data2Vec
from model.initialization import initialize
from model.losses import objective
from model.masking import split_views
from model.outputs import StudentOutput
from pretrain.compilation import compile_blocks
from pretrain.masking import masking_of
from pretrain.recipes.registry import recipe

REFERENCE_CPU_SECONDS = {
    ("image-base", 2, 1, 224): 2.6,
    ("image-base", 2, 8, 224): 6.4,
    ("image-base", 2, 16, 224): 15.7,
    ("image-base", 4, 8, 224): 14.6,
    ("image-base", 4, 16, 224): 26.9,
    ("audio-base", 2, 8, 80_000): 20.1,
    ("text-base", 1, 8, 512): 28.7,
}
"""Median CPU seconds per step of the reference in fp32 by (recipe, batch, views, input length); of several runs the
lowest median."""
BASELINE = "fairseq 3d262bb2, fp32, 2 threads, another day and load (data2vec2-facts.md section 7)"
SAMPLE_RATE = 16_000


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
    config = recipe(options.recipe).model
    modality = options.modality or next(iter(config.modalities))
    side = dataclasses.replace(config.modalities[modality], num_views=options.views)
    config = dataclasses.replace(config, **{modality: side})  # type: ignore[arg-type]
    length = input_length(config, modality, options)
    dtype = getattr(torch, options.dtype)
    batch = make_batch(config, modality, length, options.batch_size, device, dtype)
    steps: dict[str, Callable[[Stopwatch], None]] = {"plain": OurStep(config, modality, batch, dtype)}
    if options.compile:
        steps["compiled"] = OurStep(config, modality, batch, dtype, compiled=True)
    if options.reference:
        step = ReferenceStep(options.reference, options.recipe, options.views, device, dtype)
        steps["fairseq"] = lambda watch: step(watch.time, batch.source, batch.masks)
    watches = measure(steps, device, options.repeats)
    figures = report(options, config, modality, length, watches["plain"])
    others = {name: beside(watch, watches["plain"]) for name, watch in watches.items() if name != "plain"}
    print(json.dumps(figures | others))


def measure(
    steps: dict[str, Callable[["Stopwatch"], None]], device: torch.device, repeats: int
) -> dict[str, "Stopwatch"]:
    """Time ``repeats`` steps of each kind in turn, after one that warms up (and compiles)."""
    for step in steps.values():
        step(Stopwatch(device))
    watches = {name: Stopwatch(device) for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            step(watches[name])
    return watches


def beside(watch: Stopwatch, plain: Stopwatch) -> dict[str, Any]:
    """Another kind of step that ran in turn with the plain one, and how many times its CPU and wall seconds it took."""
    wall, cpu = medians(watch.wall), medians(watch.cpu)
    return {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "cpu_seconds_over_plain": round(cpu["step"] / medians(plain.cpu)["step"], 3),
        "wall_seconds_over_plain": round(wall["step"] / medians(plain.wall)["step"], 3),
    }


def input_length(config: ModelConfig, modality: str, options: argparse.Namespace) -> int:
    """Pixels of a side, waveform samples or tokens of one input."""
    if modality == "audio":
        return int(options.seconds * SAMPLE_RATE)
    return options.tokens if modality == "text" else config.image.image_size  # type: ignore[union-attr]


def make_source(config: ModelConfig, modality: str, length: int, batch_size: int) -> torch.Tensor:
    """Random input of one batch."""
    generator = torch.Generator().manual_seed(0)
    if config.image is not None and modality == "image":
        return torch.randn(batch_size, config.image.in_channels, length, length, generator=generator)
    if config.text is not None and modality == "text":
        return torch.randint(4, config.text.vocab_size, (batch_size, length), generator=generator)
    return torch.randn(batch_size, length, generator=generator)


class Inputs(NamedTuple):
    """One batch on its device."""

    source: torch.Tensor
    masks: torch.Tensor
    """(B, M, T)."""


def make_batch(
    config: ModelConfig, modality: str, length: int, batch_size: int, device: torch.device, dtype: torch.dtype
) -> Inputs:
    """Random input and masks."""
    source = make_source(config, modality, length, batch_size).to(device)
    masks = masking_of(config, modality).masks(range(batch_size), [length] * batch_size)
    return Inputs(source.to(dtype) if source.is_floating_point() else source, masks.to(device))


class OurStep:
    """Student and teacher over one batch; dropouts are on."""

    def __init__(
        self, config: ModelConfig, modality: str, batch: Inputs, dtype: torch.dtype, *, compiled: bool = False
    ) -> None:
        self._modality, self._source = modality, batch.source
        self._side, self._dim = config.modalities[modality], config.encoder.dim
        device = batch.source.device
        student, teacher = Data2Vec(config), Data2Vec(config, role="teacher")
        initialize(student, 0)
        shared = {name: value for name, value in student.state_dict().items() if name in teacher.state_dict()}
        teacher.load_state_dict(shared)
        self._student, self._teacher = student.to(device, dtype), teacher.to(device, dtype).eval()
        for network in (self._student, self._teacher) if compiled else ():
            compile_blocks(network, dynamic=modality == "audio")
        self._masters = [p.detach().float() for p in self._teacher.parameters()]
        self._averages = [master.clone() for master in self._masters]
        self._views = split_views(batch.masks, int((~batch.masks[0, 0]).sum()))

    def __call__(self, watch: Stopwatch) -> None:
        """One step, part by part."""
        out = watch.time("student_forward", self._forward)
        targets = partial(self._teacher.targets, self._source, out, modality=self._modality)
        goal = watch.time("teacher_forward", targets)
        watch.time("loss_backward", partial(self._backward, out, goal.targets))
        watch.time("ema", lambda: ema.lerp_(self._averages, self._masters, 0.9998))
        self._student.zero_grad()

    def _forward(self) -> StudentOutput:
        shape = (*self._views.removed.shape, self._dim)
        some = next(self._student.parameters())
        noise = torch.randn(shape, device=some.device, dtype=some.dtype) * self._side.decoder.noise_std
        out = self._student(self._source, self._views, noise, modality=self._modality)
        assert isinstance(out, StudentOutput)
        return out

    def _backward(self, out: StudentOutput, targets: torch.Tensor) -> None:
        terms = objective(self._side, out, targets, self._source).values()
        torch.stack([term.weight * term.sum / term.count for term in terms]).sum().backward()


def report(
    options: argparse.Namespace, config: ModelConfig, modality: str, length: int, watch: Stopwatch
) -> dict[str, Any]:
    """The figures, with the ratio to the reference where it was measured."""
    wall, cpu = medians(watch.wall), medians(watch.cpu)
    flops = options.batch_size * train_flops_per_sample(config, modality, length)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    baseline = REFERENCE_CPU_SECONDS.get((options.recipe, options.batch_size, options.views, length))
    comparable = baseline if options.device == "cpu" and options.dtype == "float32" else None
    return {
        "recipe": options.recipe,
        "batch_size": options.batch_size,
        "views": options.views,
        "input": f"{length} " + {"image": "pixels a side", "audio": "waveform samples", "text": "tokens"}[modality],
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "samples_per_second": round(options.batch_size / wall["step"], 3),
        "tflops_per_second": round(flops / wall["step"] / 1e12, 4),
        "peak_memory_gib": round(peak, 2),
        "reference_cpu_seconds": comparable,
        "reference": BASELINE if comparable else None,
        "cpu_seconds_over_reference": round(cpu["step"] / comparable, 3) if comparable else None,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_time", description=__doc__)
    parser.add_argument("--recipe", default="image-base")
    parser.add_argument("--modality", help="of a recipe that has several; default: its first")
    parser.add_argument("--seconds", type=float, default=5.0, help="of audio; default: 5")
    parser.add_argument("--tokens", type=int, default=512, help="of text; default: 512")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reference", type=Path, help="checkout of fairseq, whose step is measured in turn with ours")
    parser.add_argument("--compile", action="store_true", help="measure compiled blocks, too")
    parser.add_argument("--repeats", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
