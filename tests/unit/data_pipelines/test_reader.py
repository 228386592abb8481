import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.reader import Reader
from data_pipelines.shards.index import read_index
from data_pipelines.shards.manifest import DatasetManifest
from data_pipelines.transforms.audio import audio_member
from data_pipelines.transforms.image import image_member
from tests.unit.data_pipelines.conftest import Dataset
from tests.unit.data_pipelines.photographs import flip_bit


def test_samples_come_in_any_order(whole: Dataset) -> None:
    reader = Reader(str(whole.folder))
    assert len(reader) == 42
    for number in (41, 0, 14, 13, 28, 5):
        sample = reader.read(number)
        assert (sample.key, sample.members) == (whole.samples[number].key, whole.samples[number].members)
        assert sample.label == number % 2
    for outside in (-1, 42):
        with pytest.raises(IndexError):
            reader.read(outside)


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("{}/shard-000001.tar", range(14, 28)),
        ("{}/shard-{{000000..000002}}.tar", range(42)),
        ("{}/shard-{{000002,000000}}.tar", [*range(28, 42), *range(14)]),
    ],
)
def test_paths_name_shards(whole: Dataset, pattern: str, numbers: range) -> None:
    reader = Reader(pattern.format(whole.folder))
    assert [reader.read(number).key for number in range(len(reader))] == [whole.samples[n].key for n in numbers]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "data.path: is empty"),
        ("pipe:touch {}/owned", "is a URL or a command"),
        ("https://example.org/{{0..3}}.tar", "is a URL or a command"),
        ("s3://bucket/a.tar", "is a URL or a command"),
        ("{}/nothing.tar", "nothing.tar: there is no such folder of shards or .tar"),
        ("{}/shard-{{000000..000003}}.tar", r"shard-000003.tar: shard is missing \(named by"),
        ("{}/shard-{{000000..", "data.path: "),
        ("{}/empty", "empty: holds no .tar shards"),
    ],
)
def test_unusable_paths_are_explained(whole: Dataset, path: str, message: str) -> None:
    (whole.folder / "empty").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        Reader(path.format(whole.folder))
    assert not (whole.folder / "owned").exists()


def test_damage_is_refused_by_name(dataset: Dataset) -> None:
    shard = dataset.folder / "shard-000001.tar"
    flip_bit(shard, int(read_index(shard).columns["jpg"].offset[3]) + 10)
    reader = Reader(str(dataset.folder))
    with pytest.raises(DataError, match=r"shard-000001.tar: sample 'flower/017': member .jpg fails its CRC-32"):
        reader.read(17)
    assert reader.read(16).key == "china/016"


def test_only_the_member_that_is_wanted_is_read(dataset: Dataset) -> None:
    """Another one may be damaged or however large."""
    shard = dataset.folder / "shard-000001.tar"
    flip_bit(shard, int(read_index(shard).columns["cls"].offset[3]))
    reader = Reader(str(dataset.folder))
    sample = reader.read(17, image_member)
    assert (sample.key, sample.label) == ("flower/017", 1)
    assert sample.members == {"jpg": dataset.samples[17].members["jpg"]}
    with pytest.raises(DataError, match=r"sample 'flower/017': has no audio member \(.flac, .*\), only .cls, .jpg$"):
        reader.read(17, audio_member)


def test_a_huge_member_is_refused_before_it_is_read(whole: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(whole.samples[17].members["jpg"])
    reader = Reader(str(whole.folder))
    monkeypatch.setattr("data_pipelines.reader.MAX_MEMBER_BYTES", size)
    assert len(reader.read(17, image_member).members["jpg"]) == size
    monkeypatch.setattr("data_pipelines.reader.MAX_MEMBER_BYTES", size - 1)
    monkeypatch.setattr(Reader, "_pread", None)
    message = f"sample 'flower/017': member .jpg has {size:,} bytes, {size - 1:,} are the most that is read$"
    with pytest.raises(DataError, match=message):
        reader.read(17, image_member)


def test_a_cut_shard_is_refused_at_once(dataset: Dataset) -> None:
    shard = dataset.folder / "shard-000002.tar"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(DataError, match=r"shard-000002.tar: has [\d,]+ bytes, its index says [\d,]+: cut short"):
        Reader(str(dataset.folder))


def test_a_shard_that_vanishes_or_shrinks_later_is_refused(dataset: Dataset) -> None:
    reader = Reader(str(dataset.folder))
    (dataset.folder / "shard-000000.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000000.tar: sample 'china/000': cannot be read"):
        reader.read(0)
    os.truncate(dataset.folder / "shard-000001.tar", 700)
    with pytest.raises(DataError, match=r"fails its CRC-32"):
        reader.read(20)


def test_a_lost_shard_of_a_prepared_folder_is_missed(dataset: Dataset) -> None:
    names = [f"shard-00000{number}.tar" for number in range(3)]
    manifest = DatasetManifest(kind="images", made_from="x", fingerprint="0", shards=names, complete=True)
    manifest.write(dataset.folder)
    assert len(Reader(str(dataset.folder))) == 42
    (dataset.folder / names[1]).unlink()
    with pytest.raises(DataError, match=r"shard-000001.tar: shard is missing \(listed in dataset.json\)"):
        Reader(str(dataset.folder))


def test_a_half_prepared_folder_is_refused(dataset: Dataset) -> None:
    DatasetManifest(kind="images", made_from="x", fingerprint="0", shards=[]).write(dataset.folder)
    with pytest.raises(DataError, match=r"half prepared; run the same 'd2v prepare images' again"):
        Reader(str(dataset.folder))


def test_open_files_are_bounded(whole: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipelines.reader._MAX_OPEN_SHARDS", 2)
    reader = Reader(str(whole.folder))
    before = len(os.listdir("/proc/self/fd"))
    for number in [0, 20, 40] * 5:
        assert reader.read(number).key == whole.samples[number].key
    assert len(os.listdir("/proc/self/fd")) == before + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_forked_processes_share_open_files_without_harm(whole: Dataset) -> None:
    reader = Reader(str(whole.folder))
    reader.read(0)  # the files are open before the fork

    def read_all(which: int) -> None:
        for number in [*range(which, 42), *range(which)] * 20:
            assert reader.read(number).members == whole.samples[number].members

    processes = [get_context("fork").Process(target=read_all, args=(which,)) for which in (0, 7, 19)]
    for process in processes:
        process.start()
    read_all(30)
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_zero_samples_are_an_error(tmp_path: Path) -> None:
    from data_pipelines.shards.writer import write_shard

    write_shard(tmp_path / "empty.tar", [])
    with pytest.raises(DataError, match="holds 0 samples"):
        Reader(str(tmp_path))
