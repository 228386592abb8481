"""``torchrun --nproc-per-node 2 -m benchmarks.split_rows``: what splitting rows saves ranks that share one model.

The student's forward and backward pass of a recipe with its frontends and decoders whole on every rank, split by rows,
and with hidden states split, too (sequence parallelism): CPU seconds of the busiest rank (median over the rounds), and
bytes that autograd keeps there, as one JSON line each. Without DeepSpeed and teacher; dropouts are on.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.step_time import input_length, make_source
from model.data2vec import Data2Vec
from model.initialization import initialize
from model.linear import LinearFactory
from model.losses import objective
from model.masking import split_views
from model.outputs import StudentOutput
from model.rows import ALL_ROWS
from pretrain.build import DTYPES, choose_device
from pretrain.environment import read_environment
from pretrain.masking import masking_of
from pretrain.parallel.grid import make_grid
from pretrain.parallel.groups import ProcessGroups, make_groups
from pretrain.parallel.tensor import MegatronLinears
from pretrain.parallel.zero import join_processes, leave_processes
from pretrain.recipes.registry import recipe
from pretrain.sections import ParallelSection


class WholeEnds(MegatronLinears):
    """Frontends and decoders do all rows on every rank."""

    def __init__(self, groups: ProcessGroups) -> None:
        """Args: as of the original."""
        super().__init__(groups)
        self.ends = ALL_ROWS


def factories(groups: ProcessGroups) -> dict[str, LinearFactory]:
    """What is compared."""
    return {
        "whole": WholeEnds(groups),
        "split ends": MegatronLinears(groups),
        "sequence parallel": MegatronLinears(groups, sequence_parallel=True),
    }


def measure(options: argparse.Namespace, linears: LinearFactory, device: torch.device) -> tuple[list[float], int]:
    """CPU seconds of every round, and bytes kept by the student and its losses."""
    config = recipe(options.recipe).model
    (modality,) = config.modalities
    side = dataclasses.replace(config.modalities[modality], num_views=options.views)
    config = dataclasses.replace(config, **{modality: side})  # type: ignore[arg-type]
    student = Data2Vec(config, linears=linears)
    initialize(student, 0)
    student = student.to(device, DTYPES[options.dtype])
    length = input_length(config, modality, options)
    source = make_source(config, modality, length, options.batch_size).to(device)
    given = source.to(DTYPES[options.dtype]) if source.is_floating_point() else source
    masks = masking_of(config, modality).masks(range(options.batch_size), [length] * options.batch_size)
    views = split_views(masks.to(device), int((~masks[0, 0]).sum()))
    here = student.views_here(views)
    noise = torch.randn(*here.removed.shape, config.encoder.dim, device=device, dtype=DTYPES[options.dtype])
    targets = torch.randn(options.batch_size, views.mask.shape[1], config.encoder.dim, device=device)
    weights = {parameter.untyped_storage()._cdata for parameter in student.parameters()}
    seconds, kept = [], dict[int, torch.UntypedStorage]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    for _ in range(options.repeats + 1):
        kept.clear()
        torch.manual_seed(0)
        start = time.process_time()
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = student(given, views, noise, modality=modality)
            assert isinstance(out, StudentOutput)
            terms = objective(side, out, targets, source).values()
        num_bytes = sum(storage.nbytes() for storage in kept.values())
        torch.stack([term.weight * term.sum / term.count for term in terms]).sum().backward()
        seconds.append(time.process_time() - start)
        student.zero_grad()
    return seconds[1:], num_bytes


def main() -> None:
    """Measure and print."""
    options = _parser().parse_args()
    processes = read_environment(os.environ)
    device, backend = choose_device(processes)
    join_processes(processes, backend)
    parallel = ParallelSection(tp_size=processes.world_size)
    groups = make_groups(make_grid(parallel, recipe(options.recipe).model, processes.world_size))
    for name, linears in factories(groups).items():
        seconds, kept = measure(options, linears, device)
        figures = torch.tensor([statistics.median(seconds), kept], dtype=torch.float64)
        dist.all_reduce(figures, dist.ReduceOp.MAX, group=groups.control_group)
        if processes.rank == 0:
            cpu, kept_mib = round(figures[0].item(), 3), round(figures[1].item() / 2**20, 1)
            run = vars(options) | {"tp_size": processes.world_size}
            print(json.dumps(run | {"rows": name, "cpu_seconds": cpu, "kept_mib": kept_mib}), flush=True)
    leave_processes()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.split_rows", description=__doc__)
    parser.add_argument("--recipe", default="audio-base", help="of one modality")
    parser.add_argument("--seconds", type=float, default=5.0, help="of audio; default: 5")
    parser.add_argument("--tokens", type=int, default=512, help="of text; default: 512")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
