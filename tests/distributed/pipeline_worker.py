"""Worker of test_pipeline: trains synthetic runs under several layouts, one after the other in one process group."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipelines.batches.base import Batch
from model.outputs import StageOutput, StudentOutput
from model.rows import OwnDropout
from pretrain import build
from pretrain.environment import Processes, read_environment
from pretrain.errors import RunError
from pretrain.parallel.zero import leave_processes
from pretrain.preempt import StopRequest
from pretrain.sections import OptimSection, ParallelSection
from pretrain.trainer import Trainer
from tests.distributed.synthetic import SyntheticMixture, run_config

build.build_mixture = SyntheticMixture  # type: ignore[assignment]
build.check_vocabulary = lambda config: None  # there are no shards
if not torch.cuda.is_available():  # generating code takes a CPU half a minute
    build.compile_blocks = functools.partial(build.compile_blocks, backend="aot_eager")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One run, or a part of it; passed as JSON."""

    run: str
    """Name of its directory; a run that is there goes on."""
    modalities: list[str]
    tp_size: int = 1
    pp_size: int = 1
    dropout: float = 0.0
    optimizer: str = "adamw"
    """Or "sgd": plain, at lr 1 and without clipping, so that no wrong scale of a gradient can hide."""
    dtype: str = "fp32"
    options: dict = dataclasses.field(default_factory=dict)
    """More of the section ``parallel``."""
    stop_at: int | None = None
    """Stop and save before the step of this number."""
    hang: bool = False
    """The last rank never comes back from its third microbatch."""
    poisoned: int | None = None
    """The step in which inputs of images are not finite, and a sample was rejected."""


def start(case: Case, out: Path, processes: Processes) -> Trainer:
    """A trainer of the case."""
    parallel = ParallelSection(tp_size=case.tp_size, pp_size=case.pp_size, **case.options)
    config = run_config(case.modalities, parallel, case.dropout)
    config = dataclasses.replace(config, precision=dataclasses.replace(config.precision, dtype=case.dtype))
    if case.optimizer == "sgd":
        config = dataclasses.replace(config, optim=OptimSection(lr=1.0, clip_norm=0.0))
    run_dir, stop = out / case.run, StopRequest()
    run_dir.mkdir(parents=True, exist_ok=True)
    trainer = build.build_trainer(config, run_dir, processes, stop, resume="auto", user_deepspeed=None)
    fetch, numbers = trainer._mixture.next_step, itertools.count(trainer.state.step)

    def next_step() -> list[Batch]:
        number, batches = next(numbers), fetch()
        stop.requested = "test" if number == case.stop_at else None
        if number == case.poisoned:
            return [dataclasses.replace(one, source=_poisoned(one), rejected=("a.tar: bad",)) for one in batches]
        return batches

    trainer._mixture.next_step = next_step  # type: ignore[method-assign]
    return trainer


def _poisoned(batch: Batch) -> torch.Tensor:
    return torch.full_like(batch.source, float("nan")) if batch.modality == "image" else batch.source


@contextlib.contextmanager
def plain_sgd() -> Iterator[None]:
    """Whatever makes AdamW gets an optimizer whose step is w -= lr g; its moments stay 0."""

    def step(optimizer: torch.optim.AdamW) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.add_(weight.grad, alpha=-group["lr"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", torch.no_grad()(step))
        yield


def hang(trainer: Trainer, named: Path) -> None:
    """The last rank hangs until the other has printed the error that it ends with, and made a file that says so."""
    student, numbers = trainer._task.student, itertools.count()

    def sleep_in_third(*arguments: object) -> StudentOutput | StageOutput:
        if next(numbers) == 2:
            while not named.exists():
                time.sleep(0.1)
            os._exit(0)
        return student(*arguments)  # type: ignore[arg-type]

    if trainer._groups.is_last_stage:
        trainer._task.student = sleep_in_third  # type: ignore[method-assign]
    try:
        trainer.train()
    except RunError as error:
        print("ERROR", error, flush=True)
        named.touch()
    os._exit(0)  # the groups are broken


def tensor_parallel_figures(trainer: Trainer) -> dict:
    """How far whole parameters are apart on ranks that share a model, and what dropout of a row's 64 numbers kept."""
    group = trainer._groups.tp_group
    whole = torch.cat([piece.master for piece in trainer._engine.fragments if piece.place.cut is None])
    highest, lowest = whole.clone(), whole.clone()
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, group=group)
    torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN, group=group)
    linears = build.make_linears(trainer._groups, sequence_parallel=True)
    dropout, ones = OwnDropout(0.5, linears.hidden), torch.ones(1, 64)
    torch.manual_seed(0)
    split = dropout(ones)
    with torch.no_grad():
        alike = dropout(ones)
    return {
        "apart": (highest - lowest).max().item(),
        "split": split.flatten().tolist(),
        "alike": alike.flatten().tolist(),
        "rows": [len(linears.ends.here(num_rows)) for num_rows in range(9)],
    }


def main() -> None:
    """Arguments: output directory, then cases."""
    out, cases = Path(sys.argv[1]), [Case(**json.loads(text)) for text in sys.argv[2:]]
    processes = read_environment(os.environ)
    for case in cases:
        trainer = start(case, out, processes)
        if case.hang:
            hang(trainer, out / "named")
        with plain_sgd() if case.optimizer == "sgd" else contextlib.nullcontext():
            trainer.train()
        trainer.close()
        blocks = [number for number, block in enumerate(trainer._task.network.encoder.blocks) if block is not None]
        print("BLOCKS", case.run, json.dumps(blocks), flush=True)
        if case.tp_size > 1:
            print("TENSOR PARALLEL", case.run, json.dumps(tensor_parallel_figures(trainer)), flush=True)
    leave_processes()


if __name__ == "__main__":
    main()
