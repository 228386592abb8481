"""Folders of shards whatever they are made of: interruptions, parts, rejections."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import DataError
from data_pipelines.jobs import Advance, run_jobs
from data_pipelines.prepare import folder
from data_pipelines.prepare.folder import WHOLE, Part, Plan, Rejected, unfinished_shards, write_folder
from data_pipelines.reader import Reader
from data_pipelines.shards.manifest import DatasetManifest, read_manifest
from data_pipelines.shards.writer import Stored

NUM_SHARDS, ITEMS_PER_SHARD = 7, 4


class Killed(BaseException):
    """As a signal: nothing catches it."""


def make(items: Sequence[int], advance: Advance) -> Iterator[Stored | Rejected]:
    """Item i gives i mod 3 samples, and one rejection if i is a multiple of 5."""
    for item in items:
        for number in range(item % 3):
            yield Stored(f"{item}-{number}", {"txt": f"{item} {number} ".encode() * 20})
        if item % 5 == 0:
            yield Rejected(f"file {item}", f"it is {item}")
        advance(item + 1)


def a_plan(
    making: Callable[[Sequence[int], Advance], Iterator[Stored | Rejected]] = make, fingerprint: str = "one"
) -> Plan:
    items = range(NUM_SHARDS * ITEMS_PER_SHARD)
    return Plan(
        kind="text",
        made_from="numbers",
        fingerprint=fingerprint,
        files={"tokenizer.model": b"a model"},
        shards=[items[start : start + ITEMS_PER_SHARD] for start in range(0, len(items), ITEMS_PER_SHARD)],
        make=making,
        unit="B",
        work=lambda item: item + 1,
        measure=lambda index: {"tokens": 10.0 * len(index)},
    )


def write(
    plan: Plan, out: Path, part: Part = WHOLE, *, num_workers: int = 1, seen: list[int] | None = None
) -> DatasetManifest:
    return write_folder(plan, out, num_workers=num_workers, report=([] if seen is None else seen).append, part=part)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    write(a_plan(), tmp_path / "whole")
    return contents(tmp_path / "whole")


def test_manifest_sums_up_what_the_items_gave(tmp_path: Path) -> None:
    seen: list[int] = []
    manifest = write(a_plan(), tmp_path, seen=seen)
    num_items = NUM_SHARDS * ITEMS_PER_SHARD
    assert manifest == read_manifest(tmp_path)
    assert manifest.num_samples == sum(item % 3 for item in range(num_items)) == len(Reader(str(tmp_path)))
    assert manifest.amounts == {"tokens": 10.0 * manifest.num_samples}
    assert manifest.size_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    lines = (tmp_path / "rejected.jsonl").read_text().splitlines()
    rejected = [{"source": f"file {item}", "reason": f"it is {item}"} for item in range(0, num_items, 5)]
    assert [json.loads(line) for line in lines] == rejected
    assert manifest.num_rejected == len(rejected)
    assert seen[-1] == a_plan().total() == num_items * (num_items + 1) // 2
    shards = [f"shard-{number:06d}.tar" for number in range(NUM_SHARDS)]
    own = [*shards, *(f"{name}.index.json" for name in shards)]
    assert set(contents(tmp_path)) == {*own, "dataset.json", "rejected.jsonl", "tokenizer.model"}


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_in_any_order_give_the_bytes_of_one_call(
    tmp_path: Path, whole: dict[str, bytes], order: tuple[int, ...]
) -> None:
    out = tmp_path / "out"
    for place, number in enumerate(order):
        seen: list[int] = []
        manifest = write(a_plan(), out, Part(number, 3), num_workers=place + 1, seen=seen)
        assert seen[-1] == a_plan().total(Part(number, 3))
        assert manifest.complete == (place == 2)
        if place < 2:
            done = [shard for one in order[: place + 1] for shard in Part(one, 3).shards(NUM_SHARDS)]
            assert len(unfinished_shards(manifest, out)) == NUM_SHARDS - len(done) > 0
            with pytest.raises(DataError, match="half prepared; run the same 'd2v prepare text' again"):
                Reader(str(out))
    assert contents(out) == whole
    assert sum(a_plan().total(Part(number, 3)) for number in order) == a_plan().total()


def test_parts_at_the_same_time_give_the_bytes_of_one_call(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Nine parts of seven shards."""
    out = tmp_path / "out"
    children = []
    for number in range(1, 10):
        if (child := os.fork()) == 0:
            status = 1
            try:
                write(a_plan(), out, Part(number, 9))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 9
    assert contents(out) == whole


@pytest.mark.parametrize("part", [WHOLE, Part(2, 2)])
@pytest.mark.parametrize("name", ["shard-000003.tar.rejected.jsonl", "shard-000003.tar", "shard-000003.tar.index.json"])
def test_a_kill_before_any_file_of_a_shard_loses_nothing(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, part: Part, name: str
) -> None:
    out = tmp_path / "out"
    write(a_plan(), out, Part(1, 2))
    made: list[str] = []
    replace = os.replace

    def killing(source: Path, target: Path) -> None:
        made.append(target.name)
        if target.name == name:
            Path(out / f".{name}.123.writing").write_bytes(b"half")  # of a kill -9; this one is noticed
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killing)
        with pytest.raises(Killed):
            write(a_plan(), out, part)
    assert made[-1] == name
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar") if path.name != "shard-000003.tar"}
    seen: list[int] = []
    assert write(a_plan(), out, part, seen=seen).complete
    assert seen[-1] == a_plan().total(part)
    assert contents(out) == whole
    for path, modified in kept.items():
        assert path.stat().st_mtime_ns == modified


def write_and_kill_at_completion(out: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool = False) -> None:
    """Finish all shards, but end before or after the manifest says so."""

    def killing(manifest: DatasetManifest, where: Path) -> None:
        if manifest.complete and not after:
            raise Killed
        write_manifest(manifest, where)
        if manifest.complete:
            raise Killed

    write_manifest = DatasetManifest.write
    with monkeypatch.context() as patch:
        patch.setattr(DatasetManifest, "write", killing)
        with pytest.raises(Killed):
            write(a_plan(), out)
    assert len(list(out.glob("*.tar.rejected.jsonl"))) == NUM_SHARDS


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_around_the_completion_loses_nothing(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    write_and_kill_at_completion(tmp_path / "out", monkeypatch, after=after)
    assert write(a_plan(), tmp_path / "out", Part(3, 9)).complete
    assert contents(tmp_path / "out") == whole


def test_two_parts_may_begin_at_the_same_moment(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def overtaken(where: Path) -> DatasetManifest | None:
        monkeypatch.undo()
        manifest = read_manifest(where)
        write(a_plan(), out, Part(2, 2))
        return manifest

    monkeypatch.setattr(folder, "read_manifest", overtaken)
    assert write(a_plan(), out, Part(1, 2)).complete
    assert contents(out) == whole


def test_a_part_leaves_what_other_parts_are_writing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(a_plan(), out, Part(1, 3))
    theirs, own = out / ".shard-000001.tar.index.json.7.writing", out / ".shard-000002.tar.rejected.jsonl.7.writing"
    for path in (theirs, own):
        path.write_bytes(b"half")
    write(a_plan(), out, Part(3, 3))
    assert theirs.exists()
    assert not own.exists()
    write(a_plan(), out, Part(2, 3))
    assert not theirs.exists()


@pytest.mark.parametrize("moment", ["before making", "after making", "before summing up", "after summing up"])
def test_a_part_that_another_overtook_reports_completion(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """All shards are there already; the other part completes the folder while this one looks at them."""
    out = tmp_path / "out"
    write_and_kill_at_completion(out, monkeypatch)
    ours = Pauses({moment: lambda: write(a_plan(), out, Part(2, 2))})
    monkeypatch.setattr(folder, "run_jobs", ours.run_jobs)
    manifest = write(a_plan(), out, Part(1, 2))
    assert moment in ours.reached
    assert manifest.complete
    assert manifest == read_manifest(out)
    assert contents(out) == whole


class Pauses:
    """``run_jobs`` that calls something before or after it runs for the first or second time."""

    def __init__(self, actions: dict[str, Callable[[], object]]) -> None:
        self.reached: list[str] = []
        self._actions = actions
        self._is_outer = True

    def run_jobs(self, *arguments: Any, **options: Any) -> list[Any]:
        if not self._is_outer:
            return run_jobs(*arguments, **options)
        what = "summing up" if self.reached else "making"
        self._reach(f"before {what}")
        done = run_jobs(*arguments, **options)
        self._reach(f"after {what}")
        return done

    def _reach(self, moment: str) -> None:
        self.reached.append(moment)
        self._is_outer = False
        self._actions.get(moment, lambda: None)()
        self._is_outer = True


def test_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    first = write(a_plan(), tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert write(a_plan(), tmp_path) == write(a_plan(), tmp_path, Part(2, 5)) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_another_plan_is_refused(tmp_path: Path) -> None:
    write(a_plan(), tmp_path, Part(1, 2))
    leftover = tmp_path / ".shard-000001.tar.7.writing"
    leftover.touch()
    for part in (WHOLE, Part(2, 2)):
        with pytest.raises(DataError, match=r"holds another data set \(numbers\)"):
            write(a_plan(fingerprint="two"), tmp_path, part)
    assert leftover.exists()  # it may belong to a call that is running


def test_nothing_usable_is_an_error_of_the_whole_not_of_a_part(tmp_path: Path) -> None:
    def none(items: Sequence[int], advance: Advance) -> Iterator[Stored | Rejected]:
        for item in items:
            if item == 9:
                yield Rejected("file 9", "broken")
            advance(item + 1)

    assert not write(a_plan(none), tmp_path, Part(1, 2)).complete
    for part in (Part(2, 2), WHOLE):
        with pytest.raises(DataError, match=r"^numbers: nothing in it is usable \(file 9: broken\)$"):
            write(a_plan(none), tmp_path, part)
    with pytest.raises(DataError, match=r"^numbers: nothing in it is usable$"):
        write(a_plan(lambda items, advance: iter(())), tmp_path / "empty")
