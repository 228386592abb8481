"""Worker of test_nonfinite: rank 1's images turn to NaN in chosen steps. Prints what happened as JSON (rank 0)."""

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from data_pipelines.batches.base import Batch
from pretrain.build import build_trainer
from pretrain.environment import Processes, read_environment
from pretrain.errors import RunError
from pretrain.parallel.zero import leave_processes
from pretrain.preempt import StopRequest
from tests.distributed.layout_worker import Case


def run_case(text: str, shards: str, out: Path, processes: Processes) -> dict[str, Any]:
    """Train ``STAGE:DTYPE[:offload]@STEP[,STEP...]``: in these steps, counted from 0, the images turn to NaN."""
    layout, _, poisoned = text.partition("@")
    case, run_dir = Case(layout), out / text.replace(":", "-")
    run = case.config(shards, *case.layouts[0])
    run_dir.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(run, run_dir, processes, StopRequest(), resume="never", user_deepspeed=None)
    fetch, numbers = trainer._mixture.next_step, itertools.count()

    def next_step() -> list[Batch]:
        batches = fetch()
        if str(next(numbers)) in poisoned.split(",") and processes.rank == 1:
            return [dataclasses.replace(one, source=torch.full_like(one.source, float("nan"))) for one in batches]
        return batches

    trainer._mixture.next_step = next_step  # type: ignore[method-assign]
    error = None
    try:
        trainer.train()
    except RunError as caught:
        error = str(caught)
    finite = all(bool(torch.isfinite(piece.master).all()) for piece in trainer._engine.fragments)
    teacher_finite = bool(torch.isfinite(trainer._teacher.shard).all())
    trainer.close()
    result = {"step": trainer.state.step, "positions": trainer.state.positions, "error": error}
    return result | {"finite": finite, "teacher_finite": teacher_finite}


def main() -> None:
    """Arguments: shards, output directory, then cases."""
    shards, out, *cases = sys.argv[1:]
    processes = read_environment(os.environ)
    results = {text: run_case(text, shards, Path(out), processes) for text in cases}
    if processes.rank == 0:
        print("RESULT", json.dumps(results))


if __name__ == "__main__":
    main()
    leave_processes()
