"""Worker of test_layouts: trains a small recipe under several layouts in one process group.

After every step it advances an unsharded fp64 average of the student, which the sharded teacher is then
compared with, and writes what the test compares as JSON (rank 0).
"""

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

import data_pipelines.reader
from data_pipelines.shards.index import ShardIndex, read_index
from model import ema
from pretrain.build import build_trainer
from pretrain.checkpoint.store import locate
from pretrain.checkpoint.weights import FragmentReader
from pretrain.config import RunConfig, with_overrides
from pretrain.environment import Processes, read_environment
from pretrain.parallel.zero import leave_processes
from pretrain.preempt import StopRequest
from pretrain.recipes.registry import recipe
from pretrain.trainer import Trainer

STEPS = 10
SMALL = 500
SMALL_PIECES = {
    "stage3_param_persistence_threshold": SMALL,  # norms and biases stay whole, matrices do not
    "stage3_max_reuse_distance": 0,
    "sub_group_size": 40_000,  # several sub-groups per optimizer group
}


@dataclass(frozen=True)
class Case:
    """``LAYOUT[,LAYOUT...]:DTYPE[:OPTION...]``: layouts take over from each other after equal shares of the steps.

    LAYOUT is a ZeRO stage, with ``t2`` behind it if two processes share a model; options are ``gathered``,
    ``resident`` and ``offload``.
    """

    text: str

    @property
    def layouts(self) -> list[tuple[int, int]]:
        """ZeRO stage and tensor-parallel size, one after the other."""
        each = [layout.partition("t") for layout in self.text.split(":")[0].split(",")]
        return [(int(stage), int(tp_size or 1)) for stage, _, tp_size in each]

    @property
    def dtype(self) -> str:
        return self.text.split(":")[1]

    @property
    def options(self) -> set[str]:
        return set(self.text.split(":")[2:])

    def directory(self, out: Path, num_processes: int) -> Path:
        return out / f"{self.text.replace(':', '-').replace(',', '')}-{num_processes}"

    def config(self, shards: str, stage: int, tp_size: int) -> RunConfig:
        options = self.options
        teacher = next((mode for mode in ("gathered", "resident") if mode in options), "auto")
        return with_overrides(
            config(shards, stage, self.dtype),
            [
                f"--parallel.tp-size={tp_size}",
                f"--parallel.teacher={teacher}",
                f"--parallel.offload={'optimizer' if 'offload' in options else 'none'}",
            ],
        )


def config(shards: str, stage: int, dtype: str) -> RunConfig:
    """image-tiny, shorter and of two blocks, with a CLS term and two microbatches per rank on one process."""
    return with_overrides(
        recipe("image-tiny"),
        [
            f"--data.path={shards}",
            f"--parallel.zero-stage={stage}",
            f"--precision.dtype={dtype}",
            f"--training.max-steps={STEPS}",
            "--training.global-batch-size=8",
            "--training.microbatch-size=2",
            "--schedule.warmup-steps=4",
            "--model.image.target.top-k=2",
            "--model.encoder.depth=2",
            "--model.image.loss.cls-weight=0.01",
            "--ema.start=0.9",
            "--ema.anneal-steps=10",
            "--logging.every-steps=1",
            "--logging.tensorboard=false",
            "--checkpoint.every-steps=1000",
            "--data.num-workers=0",
        ],
    )


def train_and_follow(trainer: Trainer, run: RunConfig, stop: StopRequest, until: int) -> dict[str, Any]:
    """Train; return the largest relative error of the sharded teacher against the fp64 average, and bytes."""
    averages = {id(piece): average.double().clone() for piece, average in trainer._teacher.fragments}
    update = trainer._teacher.update

    def follow(decay: float) -> None:
        exact = ema.decay(trainer.state.step, run.ema.start, run.ema.end, run.ema.anneal_steps)
        assert exact == decay
        for piece, _ in trainer._teacher.fragments:
            averages[id(piece)].lerp_(piece.master.double(), 1 - exact)
        update(decay)
        if trainer.state.step == until:
            stop.requested = "enough for this stage"

    trainer._teacher.update = follow  # type: ignore[method-assign]
    trainer.train()
    errors = [
        ((average.double() - averages[id(piece)]).abs().max() / averages[id(piece)].abs().max().clamp_min(1e-3)).item()
        for piece, average in trainer._teacher.fragments
    ]
    shard = trainer._teacher.shard
    numels = [place.numel for group in trainer._engine.groups for place in group.placements]
    return {
        "student_numel": sum(numels),
        "student_small_numel": sum(numel for numel in numels if numel <= SMALL),
        "student_at_rest_numel": sum(p.numel() for p in trainer._engine.module.parameters()),
        "student_owned_numel": sum(piece.master.numel() for piece in trainer._engine.fragments),
        "ema_error": max(errors),
        "shard_bytes": shard.numel() * shard.element_size(),
        "teacher_numel": sum(place.numel for place in trainer._engine.groups[0].placements),
        "teacher_parameters": len(trainer._engine.groups[0].placements),
        "at_rest_numel": sum(p.numel() for p in trainer._teacher.ready().parameters()),
    }


def restored_exactly(trainer: Trainer, run_dir: Path) -> bool:
    """Whether every fragment is what the checkpoint holds: whatever layout wrote it."""
    reader = FragmentReader(locate(run_dir))

    def same(kind: str, piece: Any, held: torch.Tensor) -> bool:
        cut, stored = piece.place.cut, piece.num_stored
        part = None if cut is None else (cut.dim, cut.start, cut.stop)
        wanted = reader.read(f"{kind}/{piece.name}", piece.start, piece.start + stored, part)
        return bool(torch.equal(held[:stored], wanted))

    return all(
        same("student", piece, piece.master)
        and same("exp_avg", piece, piece.exp_avg)
        and same("exp_avg_sq", piece, piece.exp_avg_sq)
        for piece in trainer._engine.fragments
    ) and all(same("teacher", piece, average) for piece, average in trainer._teacher.fragments)


def forget_groups() -> None:
    """Megatron and DeepSpeed know one grid of ranks per process; the next layout has another."""
    megatron = sys.modules.get("megatron.core.parallel_state")
    if megatron is not None:
        megatron.destroy_model_parallel()
    deepspeed.utils.groups.mpu = None


def counted_reads() -> Counter[Path]:
    """From now on how often the index of each shard is read."""
    reads: Counter[Path] = Counter()

    def read(shard: Path) -> ShardIndex:
        reads[shard] += 1
        return read_index(shard)

    data_pipelines.reader.read_index = read  # type: ignore[attr-defined]
    return reads


def run_case(case: Case, shards: str, run_dir: Path, processes: Processes) -> dict[str, Any]:
    """Train through the case's layouts; the last one's figures."""
    result, exact, reads = {}, True, counted_reads()
    for number, (stage, tp_size) in enumerate(case.layouts):
        run, stop = case.config(shards, stage, tp_size), StopRequest()
        user = {"zero_optimization": SMALL_PIECES} if stage == 3 else None
        trainer = build_trainer(run, run_dir, processes, stop, resume="auto", user_deepspeed=user)
        exact = exact and (number == 0 or restored_exactly(trainer, run_dir))
        result = train_and_follow(trainer, run, stop, STEPS * (number + 1) // len(case.layouts)) | {
            "restored_exactly": exact
        }
        trainer.close()
        forget_groups()
    return result | {"index_reads": max(reads.values())}


def main() -> None:
    """Arguments: shards, output directory, then cases."""
    shards, out, *cases = sys.argv[1:]
    processes = read_environment(os.environ)
    for case in map(Case, cases):
        run_dir = case.directory(Path(out), processes.world_size)
        run_dir.mkdir(parents=True, exist_ok=True)
        result = run_case(case, shards, run_dir, processes)
        results: list[dict[str, Any]] = [{}] * processes.world_size
        dist.all_gather_object(results, result)
        if processes.rank == 0:
            (run_dir / "result.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    leave_processes()
