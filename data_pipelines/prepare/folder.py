"""A folder of shards made by independent jobs: resumable, and the same bytes however often it was interrupted."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.atomic import remove_leftovers, replacing
from data_pipelines.errors import DataError
from data_pipelines.jobs import Advance, Report, run_jobs
from data_pipelines.shards.index import ShardIndex, index_path, read_index
from data_pipelines.shards.manifest import NAME, DatasetManifest, read_manifest, write_classes
from data_pipelines.shards.writer import Stored, write_shard


class Rejected(NamedTuple):
    """A source file that does not become a sample."""

    source: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a folder will hold."""

    kind: str
    """The ``d2v prepare`` kind."""
    made_from: str
    """Source and options in words."""
    fingerprint: str
    """SHA-256 of all that decides the content."""
    classes: list[str]
    """Names by label; empty if samples have none."""
    shards: list[Sequence[Any]]
    """The items of every shard; each has a ``key``, unique in the folder."""
    make: Callable[[Sequence[Any]], Iterator[Stored | Rejected]]
    """Some items of a shard -> their samples in order."""

    def __len__(self) -> int:
        """Items in all shards."""
        return sum(map(len, self.shards))


def write_folder(plan: Plan, out: Path, *, num_workers: int, report: Report) -> DatasetManifest:
    """Make what the plan says; shards that an earlier, interrupted call finished are kept.

    Args:
        plan: what to make.
        out: the folder; created if missing.
        num_workers: processes; each makes one shard at a time.
        report: receives the number of items done.
    Raises:
        DataError: if ``out`` holds something else or cannot be written, or if no item becomes a sample.
    """
    manifest = _claim(plan, out)
    if manifest.complete:
        return manifest
    if plan.classes:
        write_classes(out, plan.classes)

    def finish_shard(job: int, advance: Advance) -> tuple[int, int, list[Rejected]]:
        index, rejected = _finish_shard(plan, job, out / manifest.shards[job], advance)
        return len(index), index.shard_size_bytes, rejected

    done = run_jobs(finish_shard, len(plan.shards), num_workers=num_workers, report=report)
    rejected = [one for _, _, several in done for one in several]
    num_samples = sum(num for num, _, _ in done)
    if num_samples == 0:
        raise DataError(f"none of {len(plan)} files is a usable image ({rejected[0].source}: {rejected[0].reason})")
    with replacing(out / "rejected.jsonl") as stream:
        stream.writelines(json.dumps(one._asdict()).encode() + b"\n" for one in rejected)
    manifest = replace(
        manifest,
        complete=True,
        num_samples=num_samples,
        num_rejected=len(rejected),
        size_bytes=sum(size for _, size, _ in done),
    )
    manifest.write(out)
    return manifest


def _claim(plan: Plan, out: Path) -> DatasetManifest:
    """The manifest of the folder: a new one, or that of the call which is to be finished."""
    if len(plan) == 0:
        raise DataError(f"{plan.made_from}: holds 0 files")
    fresh = DatasetManifest(
        kind=plan.kind,
        made_from=plan.made_from,
        fingerprint=plan.fingerprint,
        shards=[f"shard-{number:06d}.tar" for number in range(len(plan.shards))],
        num_classes=len(plan.classes),
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        present = read_manifest(out)
        if present is None and any(name for name in out.iterdir() if not name.name.startswith(f".{NAME}")):
            raise DataError(f"{out}: exists and is not empty; choose another folder or remove it")
        remove_leftovers(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from error
    if present is None:
        fresh.write(out)
        return fresh
    if present.fingerprint != plan.fingerprint:
        raise DataError(
            f"{out}: holds another data set ({present.made_from}); choose another folder, or remove it to start anew"
        )
    return present


def _finish_shard(plan: Plan, job: int, shard: Path, advance: Advance) -> tuple[ShardIndex, list[Rejected]]:
    items = plan.shards[job]
    if index_path(shard).exists() and shard.exists():
        index = read_index(shard)
        stored = {index.key(row) for row in range(len(index))}
        left = list(plan.make([item for item in items if item.key not in stored]))
        rejected = [one for one in left if isinstance(one, Rejected)]
        if len(rejected) == len(left):
            advance(len(items))
            return index, rejected
    rejected = []

    def samples() -> Iterable[Stored]:
        for one in plan.make(items):
            advance(1)
            if isinstance(one, Rejected):
                rejected.append(one)
            else:
                yield one

    return write_shard(shard, samples()), rejected
