"""Worker of test_checkpoints: files that cannot be written, files that are damaged. Prints what each rank saw.

A limit on the size of files stands in for a full disk: writing beyond it is an OSError like any other.
"""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pretrain import build
from pretrain.checkpoint import manifest, state, store
from pretrain.environment import read_environment
from pretrain.errors import RunError
from pretrain.parallel.zero import leave_processes
from pretrain.preempt import StopRequest
from pretrain.sections import ParallelSection
from pretrain.trainer import Trainer
from tests.distributed.synthetic import SyntheticMixture, run_config

build.build_mixture = SyntheticMixture  # type: ignore[assignment]
build.check_vocabulary = lambda config: None  # there are no shards
ANYTHING = resource.RLIM_INFINITY


def failure(trainer: Trainer, run_dir: Path, run_ids: dict[str, str], largest: int) -> dict[str, Any]:
    """What saving with these ids raises here while this rank can write no larger file than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, ANYTHING))
    try:
        parts = trainer._engine, trainer._teacher, trainer._groups
        state.save(run_dir, run_config(["image"], ParallelSection()), trainer.state, *parts, run_ids)
    except RunError as error:
        return {"error": str(error), "may be mended": isinstance(error.__cause__, RuntimeError)}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ANYTHING, ANYTHING))
    return {}


def synced_while(trainer: Trainer) -> list[str]:
    """Save a checkpoint; names of what this rank had the disk take in."""
    names, sync = [], os.fsync

    def noted(handle: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    os.fsync = noted
    trainer._checkpoint()
    os.fsync = sync
    return names


def read_while_choosing(trainer: Trainer, run_dir: Path) -> dict[str, Any]:
    """The newest whole checkpoint, and the files that this rank read for it."""
    names, digest = [], manifest.file_sha256

    def noted(path: Path) -> str:
        names.append(f"{path.parent.name}/{path.name}")
        return digest(path)

    manifest.file_sha256 = noted
    found, refused = state.choose(run_dir, trainer._groups)
    manifest.file_sha256 = digest
    return {"found": found and found.name, "refused": refused, "read": names}


def main() -> None:
    """Argument: run directory."""
    run_dir = Path(sys.argv[1])
    processes = read_environment(os.environ)
    run = run_config(["image"], ParallelSection())
    trainer = build.build_trainer(run, run_dir, processes, StopRequest(), resume="never", user_deepspeed=None)
    first = processes.rank == 0
    result: dict[str, Any] = {"synced": synced_while(trainer)}
    trainer.state.step = 1
    size = (store.step_directory(run_dir, 0) / "rank-00000.safetensors").stat().st_size
    large = {"tracker": "x" * 3 * size}  # a manifest beyond the limit, which files of tensors are within
    result["rank 0"] = failure(trainer, run_dir, large, 2 * size if first else ANYTHING)
    result["rank 1"] = failure(trainer, run_dir, {}, ANYTHING if first else size // 2)
    result["left"] = [path.name for path in store.complete_checkpoints(run_dir)]
    trainer._checkpoint()
    dist.barrier()
    if first:
        victim = store.step_directory(run_dir, 1) / "rank-00001.safetensors"
        content = victim.read_bytes()
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    dist.barrier()
    result["chosen"] = read_while_choosing(trainer, run_dir)
    trainer.close()
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
    leave_processes()
