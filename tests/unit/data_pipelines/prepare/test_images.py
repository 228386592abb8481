import json
import os
import tarfile
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.prepare.folder import write_folder
from data_pipelines.prepare.images import plan_images
from data_pipelines.reader import Reader, Sample
from data_pipelines.shards.manifest import DatasetManifest, read_classes
from tests.unit.data_pipelines.photographs import encoded
from tests.unit.data_pipelines.shards.test_index import through_reader, through_webdataset


def prepare(source: Path, out: Path, *, num_workers: int = 1, **options: int) -> DatasetManifest:
    limits = {"shard_size_bytes": 1 << 20, "max_samples_per_shard": 10, "max_pixels": 64_000_000, **options}
    return write_folder(plan_images(source, out, **limits), out, num_workers=num_workers, report=lambda done: None)


def make_tree(folder: Path, num_per_class: int = 12) -> Path:
    """Two classes of whole JPEGs named as ImageNet's are."""
    for label, name in enumerate(("n02", "n11")):
        (folder / name).mkdir(parents=True)
        for number in range(num_per_class):
            (folder / name / f"{name}_{number}.JPEG").write_bytes(encoded(2 * number + label))
    return folder


def samples_of(folder: Path) -> list[Sample]:
    reader = Reader(str(folder))
    return [reader.read(number) for number in range(len(reader))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rejected(folder: Path) -> dict[str, str]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return {one["source"]: one["reason"] for one in map(json.loads, lines)}


def test_a_class_per_folder_tree(tmp_path: Path) -> None:
    manifest = prepare(make_tree(tmp_path / "source"), tmp_path / "out")
    samples = samples_of(tmp_path / "out")
    assert [sample.key for sample in samples[:3]] == ["n02/n02_0", "n02/n02_1", "n02/n02_10"]
    assert [sample.label for sample in samples] == [0] * 12 + [1] * 12
    for sample in samples:  # the original bytes
        path = tmp_path / "source" / f"{sample.key}.JPEG"
        assert sample.members == {"jpg": path.read_bytes(), "cls": str(sample.label).encode()}
    assert (manifest.num_samples, manifest.num_classes, manifest.num_rejected) == (24, 2, 0)
    assert [len(list((tmp_path / "out").glob("*.tar"))), len(manifest.shards)] == [3, 3]  # 10 + 10 + 4
    assert read_classes(tmp_path / "out") == {0: "n02", 1: "n11"}
    assert through_webdataset(tmp_path / "out") == through_reader(tmp_path / "out")


def test_what_is_not_a_whole_image_is_listed_with_its_reason(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", num_per_class=3)
    (source / "n02" / "n02_1.JPEG").write_bytes(encoded(2)[:700])
    (source / "n11" / "README.txt").write_bytes(b"about this class")
    (source / "n11" / "large.png").write_bytes(encoded(5, width=101, height=100, format_name="PNG"))
    (source / "n11" / "empty.jpg").touch()
    (source / "n11" / "really_a_png.JPEG").write_bytes(encoded(7, format_name="PNG"))
    manifest = prepare(source, tmp_path / "out", max_pixels=10_000)
    reasons = rejected(tmp_path / "out")
    assert list(reasons) == ["n02/n02_1.JPEG", "n11/README.txt", "n11/empty.jpg", "n11/large.png"]
    assert "truncated" in reasons["n02/n02_1.JPEG"]
    assert reasons["n11/README.txt"] == reasons["n11/empty.jpg"] == "not a JPEG, PNG or WebP image"
    assert reasons["n11/large.png"].startswith("101 x 100 pixels are more than the cap of 10,000")
    assert (manifest.num_samples, manifest.num_rejected) == (6, 4)
    assert set(samples_of(tmp_path / "out")[-1].members) == {"png", "cls"}  # named by what it is


def test_keys_are_unique_and_without_dots(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "a b.c"
    (folder / "deep").mkdir(parents=True)
    for name in ("x.1.jpg", "x.2.jpg", "__x__.jpg", ".hidden.jpg", "déjà vu.jpg", "deep/x.jpg"):
        (folder / name).write_bytes(encoded(1))
    prepare(tmp_path / "source", tmp_path / "out")
    keys = [sample.key for sample in samples_of(tmp_path / "out")]
    assert sorted(keys) == sorted(["a_b_c/x", "a_b_c/x-2", "a_b_c/x-3", "a_b_c/x-4", "a_b_c/déjà_vu", "a_b_c/deep/x"])
    assert through_webdataset(tmp_path / "out") == through_reader(tmp_path / "out")


def test_images_without_classes_have_no_labels(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "one.png").write_bytes(encoded(1, format_name="PNG"))
    manifest = prepare(tmp_path / "source", tmp_path / "out")
    assert samples_of(tmp_path / "out")[0] == Sample(
        "one", None, {"png": (tmp_path / "source" / "one.png").read_bytes()}
    )
    assert manifest.num_classes == 0
    assert not (tmp_path / "out" / "classes.json").exists()


@pytest.mark.parametrize("prefix", ["", "./", "train/"])
def test_one_tar_is_labelled_by_the_folders_in_it(tmp_path: Path, prefix: str) -> None:
    tree = make_tree(tmp_path / "tree", num_per_class=3)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for path in sorted(tree.rglob("*.JPEG"), reverse=True):
            archive.add(path, f"{prefix}{path.relative_to(tree)}")
    prepare(tmp_path / "all.tar", tmp_path / "out")
    prepare(tree, tmp_path / "same")
    assert samples_of(tmp_path / "out") == samples_of(tmp_path / "same")
    assert read_classes(tmp_path / "out") == {0: "n02", 1: "n11"}


def test_several_tars_are_a_class_each(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", num_per_class=3)
    (tmp_path / "tars").mkdir()
    for folder in tree.iterdir():
        with tarfile.open(tmp_path / "tars" / f"{folder.name}.tar", "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)
    prepare(tmp_path / "tars", tmp_path / "out")
    prepare(tree, tmp_path / "same")
    assert samples_of(tmp_path / "out") == samples_of(tmp_path / "same")


def test_shards_are_closed_by_size(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    manifest = prepare(source, tmp_path / "out", shard_size_bytes=20_000, max_samples_per_shard=1000)
    sizes = [(tmp_path / "out" / name).stat().st_size for name in manifest.shards]
    assert len(sizes) > 3
    assert max(sizes) <= 20_000 + 10_240  # tar rounds up to records of 10 240 bytes


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, num_workers: int) -> None:
    source = make_tree(tmp_path / "source")
    (source / "n02" / "bad.jpg").write_bytes(b"no")
    prepare(source, tmp_path / "out", num_workers=num_workers)
    os.utime(source / "n02" / "n02_0.JPEG", (1, 1))
    prepare(source, tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "source"), tmp_path / "out"
    first = prepare(source, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare(source, out) == first
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "source"), tmp_path / "out"
    prepare(source, out)
    with pytest.raises(DataError, match=r"out: holds another data set \(.*source \(shard size"):
        prepare(source, out, max_samples_per_shard=3)
    (source / "n02" / "new.JPEG").write_bytes(encoded(50))
    with pytest.raises(DataError, match="out: holds another data set"):
        prepare(source, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(DataError, match="mine: exists and is not empty"):
        prepare(source, tmp_path / "mine")


def test_unusable_sources_and_places_are_explained(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", num_per_class=1)
    with pytest.raises(DataError, match="nowhere: does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match="lies inside the source"):
        prepare(source, source / "shards")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no images"):
        prepare(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "notes.txt").write_text("text")
    with pytest.raises(DataError, match=r"empty \(.*: nothing in it is usable \(notes.txt: not a JPEG"):
        prepare(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="shards: cannot be written"):
        prepare(source, tmp_path / "file" / "shards")
    (tmp_path / "cut.tar").write_bytes(bytes(700))
    with pytest.raises(DataError, match=r"cut.tar: "):
        prepare(tmp_path / "cut.tar", tmp_path / "out2")
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "n01.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"n01.tar.gz: compressed archives cannot be read at random"):
        prepare(tmp_path / "zipped", tmp_path / "out3")
