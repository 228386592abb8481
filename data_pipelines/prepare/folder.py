"""A folder of shards made by independent jobs: resumable, and the same bytes however often it was interrupted."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.atomic import remove_leftovers, replacing
from data_pipelines.errors import DataError
from data_pipelines.jobs import Advance, Report, run_jobs
from data_pipelines.shards.index import ShardIndex, index_path, read_index
from data_pipelines.shards.manifest import NAME, REJECTED, DatasetManifest, read_manifest, write_classes
from data_pipelines.shards.writer import Stored, write_shard


class Rejected(NamedTuple):
    """A piece of the source (a file, a line of a corpus) that does not become a sample."""

    source: str
    reason: str


class Part(NamedTuple):
    """Which shards one call makes: every ``num_parts``-th."""

    number: int
    """From 1."""
    num_parts: int

    def shards(self, num_shards: int) -> range:
        """Their numbers."""
        return range(self.number - 1, num_shards, self.num_parts)


WHOLE = Part(1, 1)


def _one(_: Any) -> int:
    return 1


def _nothing(_: ShardIndex) -> dict[str, float]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides what a folder will hold."""

    kind: str
    """The ``d2v prepare`` kind."""
    made_from: str
    """Source and options in words."""
    fingerprint: str
    """SHA-256 of the options and of the sources' names, sizes and labels: their content is not read for it, so a source
    that changes and keeps its size goes unseen."""
    classes: list[str] = field(default_factory=list)
    """Names by label; empty if samples have none."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Further files of the folder by name, such as a tokenizer; written before the shards."""
    shards: list[Sequence[Any]]
    """The items of every shard, in order."""
    make: Callable[[Sequence[Any], Advance], Iterator[Stored | Rejected]]
    """Items of one shard -> their samples in order; reports the ``work`` of every item as it goes. Any number of
    samples may come of an item; their keys must be unique in the folder."""
    unit: str
    """Of work, in the plural ("B" is shown in binary multiples)."""
    work: Callable[[Any], int] = _one
    """Work in an item, in ``unit``."""
    measure: Callable[[ShardIndex], dict[str, float]] = _nothing
    """What a shard holds besides samples and bytes, by name, such as seconds; summed into the manifest."""

    def total(self, part: Part = WHOLE) -> int:
        """Work in all shards of a part, in ``unit``."""
        return sum(self.work(item) for shard in part.shards(len(self.shards)) for item in self.shards[shard])


def write_folder(plan: Plan, out: Path, *, num_workers: int, report: Report, part: Part = WHOLE) -> DatasetManifest:
    """Make what the plan says; shards that an earlier, interrupted call finished are kept.

    Parts may run at the same time, on several machines with a common file system. The one that finds all shards
    finished completes the folder; if two do, they write the same.

    Args:
        plan: what to make.
        out: the folder; created if missing.
        num_workers: processes; each makes one shard at a time.
        report: receives the work done, of ``plan.total(part)``.
        part: which shards to make.
    Returns:
        The manifest; it is not complete if other parts are still to be made.
    Raises:
        DataError: if ``out`` holds something else or cannot be written, or if the whole source gives no sample.
    """
    manifest = _claim(plan, out, part)
    if manifest.complete:
        _remove_rejected(out)
        return manifest
    for name, content in plan.files.items():
        with replacing(out / name) as stream:
            stream.write(content)
    if plan.classes:
        write_classes(out, plan.classes)
    shards = part.shards(len(plan.shards))

    def finish_shard(job: int, advance: Advance) -> None:
        _finish_shard(plan, shards[job], out / manifest.shards[shards[job]], advance)

    run_jobs(finish_shard, len(shards), num_workers=num_workers, report=report)
    unfinished = unfinished_shards(manifest, out)
    manifest = read_manifest(out) or manifest
    if manifest.complete:  # by another part meanwhile
        _remove_rejected(out)
        return manifest
    return manifest if unfinished else _complete(plan, manifest, out, num_workers)


def unfinished_shards(manifest: DatasetManifest, out: Path) -> list[str]:
    """Shards of a folder which is not complete that no call has finished yet."""
    present = {path.name for path in out.iterdir()}
    return [name for name in manifest.shards if not {path.name for path in _files_of(out / name)} <= present]


def _claim(plan: Plan, out: Path, part: Part) -> DatasetManifest:
    """The manifest of the folder: a new one, or that of the call which is to be finished."""
    if not any(map(len, plan.shards)):
        raise DataError(f"{plan.made_from}: holds no {plan.kind}")
    fresh = DatasetManifest(
        kind=plan.kind,
        made_from=plan.made_from,
        fingerprint=plan.fingerprint,
        shards=[f"shard-{number:06d}.tar" for number in range(len(plan.shards))],
        num_classes=len(plan.classes),
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        if read_manifest(out) is None:
            foreign = [path for path in out.iterdir() if not path.name.startswith(f".{NAME}")]
            if read_manifest(out) is None:  # else another part wrote it while we looked
                if foreign:
                    raise DataError(f"{out}: exists and is not empty; choose another folder or remove it")
                fresh.write(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from error
    present = read_manifest(out)
    if present is None or present.fingerprint != plan.fingerprint:
        made_from = "" if present is None else f" ({present.made_from})"
        raise DataError(f"{out}: holds another data set{made_from}; choose another folder, or remove it to start anew")
    _remove_leftovers(present, out, part)
    return present


def _remove_leftovers(manifest: DatasetManifest, out: Path, part: Part) -> None:
    """Delete what killed writers left behind: of a part only its own, for others may be running."""
    if part.num_parts == 1:
        remove_leftovers(out)
        return
    own = {manifest.shards[number] for number in part.shards(len(manifest.shards))}
    for leftover in out.glob(".*.tar*"):
        if leftover.name[1 : leftover.name.index(".tar") + 4] in own:
            leftover.unlink(missing_ok=True)


def _finish_shard(plan: Plan, number: int, shard: Path, advance: Advance) -> None:
    items = plan.shards[number]
    if all(path.exists() for path in _files_of(shard)):
        advance(sum(map(plan.work, items)))
        return

    def samples() -> Iterable[Stored]:
        rejected = []
        for one in plan.make(items, advance):
            if isinstance(one, Rejected):
                rejected.append(json.dumps(one._asdict()).encode() + b"\n")
            else:
                yield one
        with replacing(_rejected_path(shard)) as stream:  # now, for the shard is not renamed yet, nor has it an index
            stream.writelines(rejected)

    write_shard(shard, samples())


def _complete(plan: Plan, manifest: DatasetManifest, out: Path, num_workers: int) -> DatasetManifest:
    """Sum up, join the rejections, and say that the folder is complete."""
    shards = [out / name for name in manifest.shards]

    def describe(job: int, advance: Advance) -> tuple[int, int, dict[str, float]]:
        index = read_index(shards[job])
        return len(index), index.shard_size_bytes, plan.measure(index)

    done = run_jobs(describe, len(shards), num_workers=num_workers, report=lambda _: None)
    try:
        rejected = [line for shard in shards for line in _rejected_path(shard).read_bytes().splitlines(keepends=True)]
    except FileNotFoundError:  # they go last of all: another part has just completed the folder
        return read_manifest(out) or manifest
    num_samples = sum(num for num, _, _ in done)
    if num_samples == 0:
        first = " ({source}: {reason})".format(**json.loads(rejected[0])) if rejected else ""
        raise DataError(f"{plan.made_from}: nothing in it is usable{first}")
    with replacing(out / REJECTED) as stream:
        stream.writelines(rejected)
    manifest = replace(
        manifest,
        complete=True,
        num_samples=num_samples,
        num_rejected=len(rejected),
        size_bytes=sum(size for _, size, _ in done),
        amounts={name: sum(amounts[name] for _, _, amounts in done) for name in done[0][2]},
    )
    manifest.write(out)
    _remove_rejected(out)
    return manifest


def _files_of(shard: Path) -> tuple[Path, Path, Path]:
    """What a finished shard has until the folder is complete."""
    return _rejected_path(shard), shard, index_path(shard)


def _rejected_path(shard: Path) -> Path:
    """Rejections of one shard, until the folder is complete."""
    return shard.with_name(f"{shard.name}.{REJECTED}")


def _remove_rejected(out: Path) -> None:
    for path in out.glob(f"*.tar.{REJECTED}"):
        path.unlink(missing_ok=True)
