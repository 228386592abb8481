"""Worker of test_layouts: trains a small recipe under several ZeRO stages in one process group.

After every step it advances an unsharded fp64 average of the student, which the sharded teacher is then
compared with, and writes what the test compares as JSON (rank 0).
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from model import ema
from pretrain.build import build_trainer
from pretrain.config import RunConfig, with_overrides
from pretrain.environment import read_environment
from pretrain.parallel.zero import leave_processes
from pretrain.preempt import StopRequest
from pretrain.recipes.registry import recipe
from pretrain.trainer import Trainer

STEPS = 20


def config(shards: str, stage: int, dtype: str) -> RunConfig:
    """image-tiny, shorter, with a CLS term and two microbatches per rank on one process."""
    return with_overrides(
        recipe("image-tiny"),
        [
            f"--data.path={shards}",
            f"--parallel.zero-stage={stage}",
            f"--precision.dtype={dtype}",
            f"--training.max-steps={STEPS}",
            "--training.global-batch-size=8",
            "--training.microbatch-size=4",
            "--schedule.warmup-steps=4",
            "--model.image.loss.cls-weight=0.01",
            "--ema.start=0.9",
            "--ema.anneal-steps=10",
            "--logging.every-steps=1",
            "--logging.tensorboard=false",
            "--checkpoint.every-steps=1000",
            "--data.num-workers=0",
        ],
    )


def train_and_follow(trainer: Trainer, run: RunConfig) -> dict:
    """Train; return the largest relative error of the sharded teacher against the fp64 average, and bytes."""
    masters = {id(piece): piece.master.double().clone() for piece, _ in trainer._teacher.fragments}
    update = trainer._teacher.update

    def follow(decay: float) -> None:
        exact = ema.decay(trainer.state.step, run.ema.start, run.ema.end, run.ema.anneal_steps)
        assert exact == decay
        for piece, _ in trainer._teacher.fragments:
            masters[id(piece)].lerp_(piece.master.double(), 1 - exact)
        update(decay)

    trainer._teacher.update = follow  # type: ignore[method-assign]
    trainer.train()
    errors = [
        ((average.double() - masters[id(piece)]).abs().max() / masters[id(piece)].abs().max().clamp_min(1e-3)).item()
        for piece, average in trainer._teacher.fragments
    ]
    module = trainer._teacher.ready()
    whole = {name: p.detach() for name, p in module.named_parameters()}
    gathered = max(
        (whole[piece.name].reshape(-1)[piece.start : piece.stop] - average.to(whole[piece.name].dtype))
        .abs()
        .max()
        .item()
        for piece, average in trainer._teacher.fragments
    )
    return {
        "ema_error": max(errors),
        "gather_error": gathered,
        "shard_bytes": trainer._teacher.shard.numel() * trainer._teacher.shard.element_size(),
        "teacher_numel": sum(p.numel() for p in whole.values()),
    }


def main() -> None:
    """Arguments: shards, output directory, then STAGE:DTYPE pairs."""
    shards, out, *cases = sys.argv[1:]
    processes = read_environment(os.environ)
    for case in cases:
        stage, dtype = case.split(":")
        run = config(shards, int(stage), dtype)
        run_dir = Path(out) / f"zero{stage}-{dtype}-{processes.world_size}"
        run_dir.mkdir(parents=True, exist_ok=True)
        trainer = build_trainer(run, run_dir, processes, StopRequest(), resume="never", user_deepspeed=None)
        result = train_and_follow(trainer, run)
        trainer.close()
        results: list[dict] = [{}] * processes.world_size
        dist.all_gather_object(results, result)
        if processes.rank == 0:
            (run_dir / "result.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    leave_processes()
