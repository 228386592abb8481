"""What of a run is saved and restored: fragments by global name, and a few numbers."""

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from data_pipelines.errors import DataError
from pretrain.checkpoint import store
from pretrain.checkpoint.manifest import FileRecord, Manifest, Part, damage, file_sha256
from pretrain.checkpoint.weights import FragmentReader
from pretrain.config import RunConfig, write_yaml
from pretrain.errors import RunError
from pretrain.parallel.fragments import Fragment
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.watch import Watch
from pretrain.parallel.zero import StudentEngine


@dataclass
class TrainState:
    """The numbers of a run that are not tensors. Everything random is keyed by them and the seed."""

    step: int = 0
    """Optimizer updates made."""
    positions: dict[str, int] = field(default_factory=dict)
    """Units consumed from the data stream of each modality, skipped steps included."""
    saved_step: int | None = None
    """Step of the checkpoint that the run has gone on from, or has written last."""


def save(
    run_dir: Path,
    config: RunConfig,
    state: TrainState,
    engine: StudentEngine,
    teacher: ShardedTeacher,
    groups: ProcessGroups,
    run_ids: dict[str, str],
) -> Path:
    """Write the whole run as one checkpoint; every rank writes what it owns. Notes the step in ``state``.

    Returns:
        The checkpoint's directory.
    Raises:
        RunError: on every rank if any rank could not write; earlier checkpoints stay as they are.
    """
    first = groups.rank == 0
    writing, problem = None, None
    if first:
        try:
            writing = store.begin(run_dir, state.step)
        except RunError as error:
            problem = str(error)
    writing, problem = _share((writing, problem), groups)
    if problem is None:
        assert writing is not None
        record, problem = _write_rank(writing, engine, teacher, groups)
        of_stage = _shapes(engine) if groups.dp_rank == groups.tp_rank == 0 else {}
        gathered = _gather((record, of_stage, problem), groups)
        problem = next((text for _, _, text in gathered if text), None)
        if problem is None and first:
            files = [record for record, _, _ in gathered]
            shapes = {name: shape for _, of_stage, _ in gathered for name, shape in of_stage.items()}
            manifest = _manifest(config, state, engine, groups, run_ids, files, shapes)
            problem = _complete(run_dir, writing, manifest, config, state.saved_step)
    problem = _share(problem, groups)
    if problem:
        # the cause tells d2v train that a restart may mend it: room comes back, and so do mounts
        raise RunError(f"checkpoint of step {state.step} could not be written: {problem}") from RuntimeError(problem)
    state.saved_step = state.step
    return store.step_directory(run_dir, state.step)


def _complete(
    run_dir: Path, writing: Path, manifest: Manifest, config: RunConfig, saved_step: int | None
) -> str | None:
    """Add what rank 0 writes and make it a checkpoint; returns why that cannot be."""
    try:
        manifest.write(writing)
        write_yaml(config, writing / "config.yaml")
        store.commit(run_dir, writing, manifest.step, config.checkpoint.keep, saved_step)
    except OSError as error:
        return f"{writing}: {error.strerror or error}"
    except DataError as error:
        return str(error)
    return None


def restore(checkpoint: Path, engine: StudentEngine, teacher: ShardedTeacher) -> TrainState:
    """Set student, moments and teacher to a checkpoint of any layout.

    Raises:
        RunError: if the checkpoint is damaged or holds other parameters.
    """
    reader = FragmentReader(checkpoint)
    if f"exp_avg/{engine.fragments[0].name}" not in reader:
        raise RunError(
            f"{checkpoint}: holds no moments of Adam (it was imported): evaluate or export it; it cannot be resumed"
        )
    with torch.no_grad():
        for piece in engine.whole_fragments():
            for kind, target in (
                ("student", piece.master),
                ("exp_avg", piece.exp_avg),
                ("exp_avg_sq", piece.exp_avg_sq),
            ):
                _load(reader, kind, piece, target)
        for piece, average in teacher.fragments:
            _load(reader, "teacher", piece, average)
    engine.restore(reader.manifest.adam_step)
    teacher.refresh()
    step = reader.manifest.step
    return TrainState(step=step, positions=dict(reader.manifest.positions), saved_step=step)


def _load(reader: FragmentReader, kind: str, piece: Fragment, target: Tensor) -> None:
    stored = piece.num_stored
    values = reader.read(f"{kind}/{piece.name}", piece.start, piece.start + stored, _part(piece))
    target[:stored].copy_(values)


def _part(piece: Fragment) -> Part | None:
    cut = piece.place.cut
    return None if cut is None else (cut.dim, cut.start, cut.stop)


def choose(run_dir: Path, groups: ProcessGroups) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files match their checksums, and why newer ones were passed over; same on all ranks.

    Raises:
        RunError: if ranks wait for each other in vain.
    """
    refused: list[str] = []
    watch = Watch(groups.place, groups.timeout_seconds)
    with contextlib.closing(watch), watch.phase("looking for the newest whole checkpoint"):
        for candidate in _share(store.complete_checkpoints(run_dir)[::-1], groups):
            problem = _damage(candidate, groups)
            if problem is None:
                return candidate, refused
            refused.append(f"{candidate.name} is damaged: {problem}")
    return None, refused


def _damage(checkpoint: Path, groups: ProcessGroups) -> str | None:
    """Why a checkpoint is not whole, or None; every rank reads its share of the files, and all know the answer."""
    files, problem = [], None
    if groups.rank == 0:
        try:
            files = [replace(record, ranges={}, parts={}) for record in Manifest.read(checkpoint).files]
        except RunError as error:
            problem = str(error)
    files, problem = _share((files, problem), groups)
    if problem is None:
        found = _gather(damage(checkpoint, files[groups.rank :: groups.world_size]), groups)
        problem = _share(next(filter(None, found), None), groups)
    return problem


def _write_rank(
    writing: Path, engine: StudentEngine, teacher: ShardedTeacher, groups: ProcessGroups
) -> tuple[FileRecord | None, str | None]:
    tensors: dict[str, Tensor] = {}
    ranges: dict[str, tuple[int, int]] = {}
    parts: dict[str, Part] = {}

    def take(kind: str, piece: Fragment, tensor: Tensor) -> None:
        part = _part(piece)
        if piece.num_stored == 0 or (part is None and groups.tp_rank > 0):  # padding; or written by another rank
            return
        tensors[f"{kind}/{piece.name}"] = tensor[: piece.num_stored]
        ranges[f"{kind}/{piece.name}"] = (piece.start, piece.start + piece.num_stored)
        if part is not None:
            parts[piece.name] = part

    for piece in engine.fragments:
        take("student", piece, piece.master)
        take("exp_avg", piece, piece.exp_avg)
        take("exp_avg_sq", piece, piece.exp_avg_sq)
    for piece, average in teacher.fragments:
        take("teacher", piece, average)
    path = writing / f"rank-{groups.rank:05d}.safetensors"
    try:
        # Clones: safetensors refuses tensors that share storage, and these are views of flat vectors.
        save_file({key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}, path)
        store.sync(path)
        return FileRecord(path.name, path.stat().st_size, file_sha256(path), ranges, parts), None
    except Exception as error:  # safetensors raises its own error type on a full disk
        return None, f"{path}: {error}"


def _manifest(
    config: RunConfig,
    state: TrainState,
    engine: StudentEngine,
    groups: ProcessGroups,
    run_ids: dict[str, str],
    files: list[FileRecord],
    shapes: dict[str, tuple[int, ...]],
) -> Manifest:
    return Manifest(
        step=state.step,
        positions=state.positions,
        adam_step=engine.adam_step,
        dp_size=groups.dp_size,
        tp_size=groups.tp_size,
        zero_stage=config.parallel.zero_stage,
        shapes=shapes,
        files=files,
        run_ids=run_ids,
        versions={"torch": torch.__version__},
        pp_size=groups.pp_size,
    )


def _shapes(engine: StudentEngine) -> dict[str, tuple[int, ...]]:
    """Whole shapes of the parameters that this stage has."""
    return {place.name: place.whole_shape for group in engine.groups for place in group.placements}


def _share(value: Any, groups: ProcessGroups) -> Any:
    """Rank 0's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=groups.control_group)
    return box[0]


def _gather(value: Any, groups: ProcessGroups) -> list[Any]:
    """Every rank's value on rank 0; nothing on the others."""
    boxes = [None] * groups.world_size if groups.rank == 0 else None
    dist.gather_object(value, boxes, dst=0, group=groups.control_group)
    return boxes or []
