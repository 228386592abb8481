"""``torchrun --nproc-per-node 2 -m tests.golden.layouts DIR``: the goldens through the trainer's own layouts.

Every case under DIR goes through tensor and sequence parallelism and through a pipeline, each over two processes: the
networks of ``pretrain.build`` under DeepSpeed, megatron-core's linears and schedule, with the reference's weights,
masks and noise. Rank 0 prints one JSON line per case and layout, as ``tests.golden.check`` does.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.batches.base import Batch
from data_pipelines.config import AudioSourceConfig, DataConfig, ImageSourceConfig, TextSourceConfig
from model.linear import Cut, cut_of
from model.masking import Views, take
from pretrain.build import build_networks, make_schedule
from pretrain.config import RunConfig
from pretrain.environment import read_environment
from pretrain.parallel.deepspeed_config import deepspeed_config
from pretrain.parallel.grid import make_grid
from pretrain.parallel.groups import ProcessGroups, make_groups
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.watch import Watch
from pretrain.parallel.zero import StudentEngine, join_processes, leave_processes
from pretrain.sections import ParallelSection, PrecisionSection
from pretrain.task import Data2VecTask, Microbatch, Observation
from tests.golden.case import Case
from tests.golden.check import case_paths, limit, relative

DEVICE = torch.device("cpu")
LAYOUTS = {
    "tp2": ParallelSection(tp_size=2),
    "rows": ParallelSection(tp_size=2, sequence_parallel=True),
    "pp2": ParallelSection(pp_size=2),
}


class GoldenTask(Data2VecTask):
    """Takes masks and noise from a case instead of drawing them."""

    case: Case

    def microbatch(self, batch: Batch, position: int) -> Microbatch:
        return Microbatch(batch, batch.source, self.case.views(), [], frozenset(), 0)

    def _noise(self, given: Microbatch) -> Tensor:
        return rows_of(self.case.noise(given.views), self.network.views_here(given.views))


def rows_of(x: Tensor, views: Views) -> Tensor:
    """Of what all views have, that of some."""
    return x[views.first : views.first + len(views.mask)]


def run_config(case: Case, parallel: ParallelSection) -> RunConfig:
    """A run of the case's model in fp32."""
    image, text = case.config.image, case.config.text
    data = DataConfig(
        image=ImageSourceConfig(size=image.image_size, channels=image.in_channels) if image else None,
        audio=AudioSourceConfig() if case.config.audio else None,
        text=TextSourceConfig(tokens_per_sample=case.source.shape[1]) if text else None,
    )
    return RunConfig(
        name="golden", model=case.config, data=data, precision=PrecisionSection(dtype="fp32"), parallel=parallel
    )


def batch_of(case: Case) -> Batch:
    mask = case.tensors["mask"].bool().view(len(case.source), -1, case.tensors["mask"].shape[1])
    kept, samples = int((~mask[0, 0]).sum()), torch.arange(len(case.source))
    return Batch(case.modality, 0, case.source, mask, kept, case.padding, samples, torch.zeros_like(samples))


@torch.no_grad()
def load(case: Case, engine: StudentEngine, teacher: ShardedTeacher) -> None:
    """Give both networks this rank's parts of the reference's weights."""
    student, average = case.group("param"), case.group("ema")
    for name, parameter in engine.module.named_parameters():
        if name in student:  # a stage may have a filler
            parameter.copy_(part_of(student[name], cut_of(parameter)))
    for piece, part in teacher.fragments:
        whole = part_of(average[piece.name], piece.place.cut).reshape(-1)
        part.copy_(whole[piece.start : piece.start + part.numel()])
    teacher.refresh()


def part_of(whole: Tensor, cut: Cut | None) -> Tensor:
    return whole if cut is None else cut.of(whole)


def gradients(engine: StudentEngine, groups: ProcessGroups) -> dict[str, Tensor]:
    """Of the parameters of this stage, whole, on every rank."""
    found = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.grad is not None and name != "filler":
            cut = cut_of(parameter)
            found[name] = parameter.grad if cut is None else torch.cat(gathered(parameter.grad, groups), dim=cut.dim)
    return found


def gathered(part: Tensor, groups: ProcessGroups) -> list[Tensor]:
    parts = [torch.empty_like(part) for _ in range(groups.tp_size)]
    dist.all_gather(parts, part.contiguous(), group=groups.tp_group)
    return parts


def differences(case: Case, parallel: ParallelSection) -> dict[str, float]:
    """What this rank sees of one step."""
    config = run_config(case, parallel)
    grid = make_grid(parallel, case.config, dist.get_world_size())
    groups = make_groups(grid)
    watch = Watch(groups.place, parallel.timeout_seconds)
    settings = deepspeed_config(config.optim, config.precision, parallel, microbatch_size=1, dp_size=grid.dp_size)
    engine, teacher = build_networks(config, settings, groups, DEVICE)
    load(case, engine, teacher)
    task = GoldenTask(case.config, engine, teacher, device=DEVICE, dtype=torch.float32, seed=0)
    task.case = case
    schedule = make_schedule(task, engine, teacher, groups, DEVICE, torch.float32, watch)
    losses: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}

    def witness(modality: str, shares: dict[str, Tensor], observe: Callable[[], Observation]) -> None:
        for name, share in shares.items():  # each of the ranks that share a model has its rows' part
            losses[name] = share.detach().clone()
            dist.all_reduce(losses[name], group=groups.tp_group)
        parts.update({name: value for name, value in observe()._asdict().items() if value is not None})

    batch, sample_size = batch_of(case), case.facts["sample_size"]
    totals = {name: count / sample_size for name, count in task.counts(batch).items()}
    schedule.accumulate([batch], {case.modality: 0}, totals, witness)
    watch.close()
    here = task.network.views_here(case.views())
    return compare(case, here, losses, parts, gradients(engine, groups))


def compare(
    case: Case, here: Views, losses: dict[str, Tensor], parts: dict[str, Tensor], gradients: dict[str, Tensor]
) -> dict[str, float]:
    """Relative differences of what is here; the losses are in the last stage only."""
    views, extra = case.views(), case.side.num_extra_tokens
    expected = {
        "prediction": case.tensors["pred_masked"].view(*views.removed.shape, -1),
        "target": take(views.spread(case.tensors["targets"]), views.removed),
        "student": case.ascending(case.tensors["student.encoder_out"])[:, extra:],
    }
    different = {name: relative(parts[name], rows_of(value, here)) for name, value in expected.items() if name in parts}
    if losses:
        total = torch.stack(list(losses.values())).sum().item()
        different["loss"] = abs(total / case.facts["loss_total_sum"] - 1)
    theirs = case.group("grad")
    return different | {f"gradient.{name}": relative(value, theirs[name]) for name, value in gradients.items()}


def result(case: Case, layout: str) -> dict[str, Any]:
    """The case in one layout, as all ranks saw it."""
    everywhere: list[dict[str, float]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everywhere, differences(case, LAYOUTS[layout]))
    worst: dict[str, float] = {}
    for seen in everywhere:
        worst |= {name: max(value, worst.get(name, 0.0)) for name, value in seen.items()}
    lacking = {f"gradient.{name}" for name in case.group("grad")} | {"prediction", "target", "student", "loss"}
    worst |= dict.fromkeys(lacking - worst.keys(), float("inf"))
    beyond = sorted(name for name, value in worst.items() if not value <= limit(name))
    most = max(worst, key=lambda name: worst[name])
    return {"case": case.name, "layout": layout, "ok": not beyond, "beyond": beyond, "worst": [most, worst[most]]}


def main(arguments: list[str]) -> int:
    """Check every case under the given folder; what is beyond tolerance is in the lines."""
    (directory,) = arguments
    processes = read_environment(os.environ)
    torch.set_num_threads(1)
    join_processes(processes, "gloo")
    results = [result(Case.load(path), layout) for layout in LAYOUTS for path in case_paths(Path(directory))]
    if processes.rank == 0:
        for line in results:
            print(json.dumps(line), flush=True)
    leave_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
