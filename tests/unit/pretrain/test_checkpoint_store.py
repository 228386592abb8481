"""Checkpoints on disk: whatever the moment of a kill, the newest whole one is found and no half one is read."""

import itertools
import math
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from pretrain.checkpoint import store, weights
from pretrain.checkpoint.manifest import FileRecord, Manifest, file_sha256
from pretrain.checkpoint.progress import read_run_config, step_of
from pretrain.checkpoint.state import choose
from pretrain.checkpoint.weights import FragmentReader, read_weights
from pretrain.config import write_yaml
from pretrain.errors import RunError
from pretrain.parallel.grid import Grid
from pretrain.parallel.groups import ProcessGroups, make_groups
from pretrain.recipes.registry import recipe

SHAPES = {"encoder.w": (3, 5), "decoder.w": (4,)}


def write(
    run_dir: Path,
    step: int,
    *,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    dp_size: int = 2,
    keep: int = 3,
    after: int | None = 0,
) -> Path:
    """A complete checkpoint whose student is ``step + element number``, its teacher the negative of it.

    The run that writes it stands on the newest one, or on that of step ``after``.
    """
    if after == 0:
        after = max((step_of(path) for path in store.complete_checkpoints(run_dir)), default=None)
    writing = store.begin(run_dir, step)
    files = []
    for rank in range(dp_size):
        tensors, ranges = {}, {}
        for name, shape in shapes.items():
            numel = math.prod(shape)
            start, stop = numel * rank // dp_size, numel * (rank + 1) // dp_size
            value = torch.arange(start, stop, dtype=torch.float32) + step
            kinds = {"student": value, "exp_avg": value, "exp_avg_sq": value}
            if name.startswith("encoder"):
                kinds["teacher"] = -value
            for kind, tensor in kinds.items():
                tensors[f"{kind}/{name}"], ranges[f"{kind}/{name}"] = tensor, (start, stop)
        path = writing / f"rank-{rank:05d}.safetensors"
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
        files.append(FileRecord(path.name, path.stat().st_size, file_sha256(path), ranges))
    Manifest(
        step=step,
        positions={"image": step * 4},
        adam_step=step,
        dp_size=dp_size,
        tp_size=1,
        zero_stage=1,
        shapes=shapes,
        files=files,
    ).write(writing)
    write_yaml(recipe("image-tiny"), writing / "config.yaml")
    return store.commit(run_dir, writing, step, keep, after)


@pytest.fixture
def alone(group: dist.ProcessGroup) -> ProcessGroups:
    """The groups of a run of one process."""
    return make_groups(Grid(world_size=1, tp_size=1))


@pytest.mark.parametrize("dp_size", [1, 2, 3])
def test_weights_are_whole_whatever_the_cut(tmp_path: Path, dp_size: int) -> None:
    checkpoint = write(tmp_path, 7, dp_size=dp_size)
    student = read_weights(checkpoint, "student")
    assert {name: tuple(value.shape) for name, value in student.items()} == SHAPES
    torch.testing.assert_close(student["encoder.w"], torch.arange(15.0).view(3, 5) + 7, rtol=0, atol=0)
    teacher = read_weights(checkpoint, "teacher")
    assert set(teacher) == {"encoder.w"}
    torch.testing.assert_close(teacher["encoder.w"], -student["encoder.w"], rtol=0, atol=0)
    torch.testing.assert_close(
        FragmentReader(checkpoint).read("exp_avg/encoder.w", 4, 9), torch.arange(4.0, 9.0) + 7, rtol=0, atol=0
    )
    assert read_run_config(checkpoint) == recipe("image-tiny")


@contextmanager
def files_left(number: int) -> Iterator[None]:
    """Inside, this process may open ``number`` files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (handle for handle in itertools.count() if not os.path.lexists(f"/proc/self/fd/{handle}"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, number, None)), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    number = weights._MAX_OPEN_FILES + 80
    checkpoint = write(tmp_path, 7, shapes={"encoder.w": (number,)}, dp_size=number)
    with files_left(weights._MAX_OPEN_FILES + 8):
        student = read_weights(checkpoint, "student")
    torch.testing.assert_close(student["encoder.w"], torch.arange(float(number)) + 7, rtol=0, atol=0)


def test_the_limit_of_open_files_is_told_from_a_missing_file(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 7)
    with files_left(1), pytest.raises(RunError, match=r"rank-00001.safetensors: cannot be read: Too many open files"):
        read_weights(checkpoint, "student")
    (checkpoint / "rank-00000.safetensors").unlink()
    with pytest.raises(RunError, match=r"rank-00000.safetensors: cannot be read: No such file"):
        read_weights(checkpoint, "student")


def test_locate_accepts_run_checkpoints_and_step(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    assert store.locate(tmp_path) == store.locate(tmp_path / "checkpoints") == second
    assert store.locate(first) == first
    with pytest.raises(RunError, match="no checkpoint here"):
        store.locate(tmp_path / "nowhere")


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        write(tmp_path, step, keep=2)
    assert [path.name for path in store.complete_checkpoints(tmp_path)] == ["step-00000003", "step-00000010"]


def refused(run_dir: Path) -> list[str]:
    """Steps of those that were put aside, e.g. ``step-00000005``."""
    return sorted(path.name[8:21] for path in (run_dir / "checkpoints").glob("refused-*"))


@pytest.mark.parametrize(
    ("after", "step", "kept", "aside"),
    [
        (1000, 1200, [1200], [1500, 2000]),  # the next save before, at and beyond those that the run passed over
        (1000, 1500, [1500], [1500, 2000]),
        (1000, 2500, [2500], [1500, 2000]),
        (None, 500, [500], [1000, 1500, 2000]),  # it found none that it could use, and started anew
        (2000, 2500, [2500], []),
    ],
)
def test_what_a_run_passed_over_neither_counts_as_kept_nor_is_lost(
    tmp_path: Path, after: int | None, step: int, kept: list[int], aside: list[int]
) -> None:
    for old in (1000, 1500, 2000):
        write(tmp_path, old)
    path = write(tmp_path, step, keep=1, after=after)
    assert store.complete_checkpoints(tmp_path) == [store.step_directory(tmp_path, one) for one in kept]
    assert store.locate(tmp_path) == path and Manifest.read(path).step == step
    assert refused(tmp_path) == [store.step_directory(tmp_path, one).name for one in aside]


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest", "empty"])
def test_damage_is_refused_and_an_older_checkpoint_found(tmp_path: Path, alone: ProcessGroups, harm: str) -> None:
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    victim = newer / "rank-00001.safetensors"
    content = victim.read_bytes()
    if harm == "flip":
        victim.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif harm == "truncate":
        victim.write_bytes(content[:-1])
    elif harm == "remove":
        victim.unlink()
    elif harm == "manifest":
        manifest = newer / "manifest.json"
        manifest.write_text(manifest.read_text()[:-40])
    else:
        shutil.rmtree(newer)
        newer.mkdir()
    found, reasons = choose(tmp_path, alone)
    assert found == older
    assert len(reasons) == 1 and "step-00000002 is damaged" in reasons[0]


def test_leftovers_of_killed_writers_are_never_read_and_go_away(tmp_path: Path, alone: ProcessGroups) -> None:
    whole = write(tmp_path, 1)
    half = store.begin(tmp_path, 2)
    (half / "manifest.json").write_text("{}")
    os.rename(write(tmp_path, 3), tmp_path / "checkpoints" / ".deleting-step-00000003")
    assert store.complete_checkpoints(tmp_path) == [whole]
    assert choose(tmp_path, alone) == (whole, [])
    store.begin(tmp_path, 4)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-00000001", ".writing-step-00000004", "latest"}


def test_foreign_and_future_manifests(tmp_path: Path) -> None:
    path = write(tmp_path, 1) / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"version":2', '"version":3', 1))
    with pytest.raises(RunError, match="format version 3, this release reads version 2; use a newer"):
        Manifest.read(path.parent)
    path.write_text(text.replace('"version":2', '"version":1', 1))
    with pytest.raises(RunError, match="format version 1, this release reads version 2; use an older"):
        Manifest.read(path.parent)
    path.write_text(text.replace("data2vec-scale/checkpoint", "other"))
    with pytest.raises(RunError, match="not a data2vec-scale checkpoint"):
        Manifest.read(path.parent)
    path.unlink()
    with pytest.raises(RunError, match="complete checkpoint"):
        Manifest.read(path.parent)
