"""Worker of test_nonfinite: rank 1's images turn to NaN in chosen steps. Prints what happened as JSON (rank 0)."""

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path

import torch

from data_pipelines.batches.base import Batch
from pretrain.build import build_trainer
from pretrain.environment import read_environment
from pretrain.errors import RunError
from pretrain.parallel.zero import leave_processes
from pretrain.preempt import StopRequest
from tests.distributed.layout_worker import config


def main() -> None:
    """Arguments: shards, run directory, STAGE:DTYPE, then the steps (counted from 0) whose images turn to NaN."""
    shards, run_dir, case, *poisoned = sys.argv[1:]
    stage, dtype = case.split(":")
    processes = read_environment(os.environ)
    run = config(shards, int(stage), dtype)
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(run, Path(run_dir), processes, StopRequest(), resume="never", user_deepspeed=None)
    fetch, numbers = trainer._mixture.next_step, itertools.count()

    def next_step() -> list[Batch]:
        batches = fetch()
        if str(next(numbers)) in poisoned and processes.rank == 1:
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
    if processes.rank == 0:
        result = {"step": trainer.state.step, "positions": trainer.state.positions, "error": error}
        print("RESULT", json.dumps(result | {"finite": finite, "teacher_finite": teacher_finite}))


if __name__ == "__main__":
    main()
    leave_processes()
