import io
import json
import tarfile
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_pipelines.errors import DataError
from data_pipelines.reader import Reader
from data_pipelines.shards.index import UNKNOWN_DURATION, build_index, compact, index_path, read_index, write_index
from tests.unit.data_pipelines.conftest import Dataset
from tests.unit.data_pipelines.photographs import flip_bit
from tests.unit.data_pipelines.speech import encode, speech


def through_webdataset(folder: Path) -> list[dict[str, object]]:
    """What stock webdataset delivers."""
    shards = sorted(map(str, folder.glob("*.tar")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    return [
        {name: value for name, value in one.items() if name not in ("__url__", "__local_path__")} for one in samples
    ]


def through_reader(folder: Path) -> list[dict[str, object]]:
    reader = Reader(str(folder))
    samples = [reader.read(number) for number in range(len(reader))]
    return [{"__key__": sample.key, **sample.members} for sample in samples]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


def test_stock_webdataset_reads_our_shards_sample_for_sample(whole: Dataset) -> None:
    written = [{"__key__": sample.key, **sample.members} for sample in whole.samples]
    assert through_webdataset(whole.folder) == written
    assert through_reader(whole.folder) == written


def test_foreign_shards_are_understood_as_webdataset_does(tmp_path: Path) -> None:
    shard = tmp_path / "foreign.tar"
    long_name = "deep/" * 40 + "x.jpg"  # needs an extended header
    members = [
        ("__meta/about__", b"not a sample"),
        ("__info__", b"archive metadata"),
        ("a/b.c/one.v1.JPG", b"first"),
        ("a/b.c/one.cls", b" 7\n"),
        ("README", b"no extension"),
        (".hidden", b"no key"),
        ("two.png", b""),
        ("two.json", b"{}"),
        ("a/b.c/one.jpg", b"the same key again is another sample"),
        ("ünï/日本.jpg", b"unicode"),
        (long_name, b"long"),
        ("__odd__/three.jpg", b"skipped"),
    ]
    write_tar(shard, members)
    with tarfile.open(shard, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "two.png"
        archive.addfile(link)
    write_index(shard, build_index(shard))
    assert through_reader(tmp_path) == through_webdataset(tmp_path)
    index = read_index(shard)
    assert [index.key(row) for row in range(len(index))][:3] == ["a/b.c/one", "two", "a/b.c/one"]
    assert index.labels.tolist() == [7, -1, -1, -1, -1]
    assert set(index.columns) == {"v1.jpg", "cls", "png", "json", "jpg"}
    assert not index.num_frames.any() and not index.sample_rates.any()


def test_a_label_that_no_index_holds_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("one.jpg", b"1"), ("one.cls", str(2**63 - 1).encode())])
    assert build_index(tmp_path / "a.tar").labels.tolist() == [2**63 - 1]
    write_tar(tmp_path / "a.tar", [("one.jpg", b"1"), ("one.cls", b"9" * 20)])
    with pytest.raises(DataError, match=r"a.tar: sample 'one': label 9{20} is more than 9223372036854775807"):
        build_index(tmp_path / "a.tar")


def test_index_survives_the_file(whole: Dataset) -> None:
    shard = whole.folder / "shard-000000.tar"
    built, read = build_index(shard), read_index(shard)
    assert (built.shard_size_bytes, built.frame_crc32) == (read.shard_size_bytes, read.frame_crc32)
    np.testing.assert_array_equal(built.keys, read.keys)
    for name in ("labels", "num_frames", "sample_rates"):
        np.testing.assert_array_equal(getattr(built, name), getattr(read, name))
    for extension, column in built.columns.items():
        for ours, theirs in zip(column, read.columns[extension], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    json.loads(index_path(shard).read_text())  # other tools can read it


def test_compact_numbers_are_the_same_and_smaller(whole: Dataset, tmp_path: Path) -> None:
    write_audio_tar(tmp_path / "audio.tar")
    for index in (build_index(tmp_path / "audio.tar"), build_index(whole.folder / "shard-000000.tar")):
        small = compact(index)
        pairs = [(getattr(index, name), getattr(small, name)) for name in ("labels", "num_frames", "sample_rates")]
        pairs += [
            pair for name, column in index.columns.items() for pair in zip(column, small.columns[name], strict=True)
        ]
        for before, after in pairs:
            np.testing.assert_array_equal(after, before)
        assert sum(after.nbytes for _, after in pairs) < sum(before.nbytes for before, _ in pairs) / 2


def write_audio_tar(shard: Path) -> None:
    stereo = np.stack([speech(2, 0.5, 44_100)] * 2, axis=1)
    members = [
        ("a.flac", encode(speech(1, 1.5))),
        ("a.txt", b"HELLO"),
        ("b.mp3", encode(stereo, 44_100, "MP3")),
        ("c.txt", b"no sound"),
        ("d.wav", encode(speech(3, 0.25, 8_000), 8_000, "WAV")),
        ("d.ogg", encode(speech(4, 1.0), 16_000, "OGG")),
        ("e.flac", b"not a recording"),
        ("f.OGG", encode(speech(5, 0.75), 16_000, "OGG", "OPUS")),
    ]
    write_tar(shard, members)


def test_durations_of_recordings_are_in_the_index(tmp_path: Path) -> None:
    write_audio_tar(tmp_path / "audio.tar")
    write_index(tmp_path / "audio.tar", build_index(tmp_path / "audio.tar"))
    index = read_index(tmp_path / "audio.tar")
    assert index.num_frames.tolist() == [24_000, 22_050, 0, 2_000, 0, 12_000]
    assert index.sample_rates.tolist() == [16_000, 44_100, 0, 8_000, 0, 16_000]  # of wav rather than of ogg
    write_tar(tmp_path / "images.tar", [("x.jpg", b"1"), ("y.jpg", b"2")])
    write_index(tmp_path / "images.tar", build_index(tmp_path / "images.tar"))
    reader = Reader(f"{tmp_path}/{{images,audio}}.tar")
    assert reader.num_frames().tolist() == [0, 0, *index.num_frames]
    assert reader.sample_rates().tolist() == [0, 0, *index.sample_rates]


def as_version_1(shard: Path) -> None:
    """Rewrite an index as it was written before there were durations."""
    values = json.loads(index_path(shard).read_text())
    for name in ("num_frames", "sample_rates", "crc32"):
        del values[name]
    body = json.dumps(values | {"version": 1}).encode().removesuffix(b"}")
    index_path(shard).write_bytes(body + b', "crc32": %d}\n' % zlib.crc32(body))


def test_an_index_of_version_1_is_read_and_lacks_durations_of_audio_only(dataset: Dataset, tmp_path: Path) -> None:
    images = dataset.folder / "shard-000000.tar"
    before = read_index(images)
    as_version_1(images)
    after = read_index(images)
    assert after.keys.tolist() == before.keys.tolist() and after.labels.tolist() == before.labels.tolist()
    assert after.num_frames.tolist() == after.sample_rates.tolist() == [0] * 14
    assert through_reader(dataset.folder) == through_webdataset(dataset.folder)

    audio = tmp_path / "audio.tar"
    write_audio_tar(audio)
    write_index(audio, build_index(audio))
    as_version_1(audio)
    index = read_index(audio)
    assert index.num_frames.tolist() == [UNKNOWN_DURATION, UNKNOWN_DURATION, 0, *[UNKNOWN_DURATION] * 3]
    assert index.sample_rates.tolist() == [0] * 6


def test_columns_must_be_of_one_length(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    write_tar(shard, [("a.jpg", b"1"), ("b.jpg", b"2")])
    write_index(shard, replace(build_index(shard), num_frames=np.zeros(3, np.int64)))
    with pytest.raises(DataError, match=r"columns of different length.*d2v shards index --force"):
        read_index(shard)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "twice.tar", [("a.jpg", b"1"), ("a.JPG", b"2")])
    with pytest.raises(DataError, match=r"twice.tar: sample 'a' has two members .jpg"):
        build_index(tmp_path / "twice.tar")


@pytest.mark.parametrize("cut", [512, 700, 1024, 1536, 2048 + 511])
def test_a_cut_archive_gets_no_index(tmp_path: Path, cut: int) -> None:
    shard = tmp_path / "cut.tar"
    write_tar(shard, [("a.jpg", bytes(100)), ("b.jpg", bytes(100))])
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"cut.tar: (not a whole|no end mark)"):
        build_index(shard)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    shard = tmp_path / "header.tar"
    write_tar(shard, [("a.jpg", bytes(100)), ("b.jpg", bytes(100))])
    flip_bit(shard, 1024 + 3)
    with pytest.raises(DataError, match=r"header.tar: damaged tar header at byte 1,024"):
        build_index(shard)


@pytest.mark.parametrize("content", [b"", b"not a tar archive at all" * 100, b"\x1f\x8b" + bytes(2000)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    shard = tmp_path / "no.tar"
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"no.tar: "):
        build_index(shard)


def test_every_flipped_bit_of_an_index_is_noticed(dataset: Dataset) -> None:
    shard = dataset.folder / "shard-000000.tar"
    path = index_path(shard)
    generator = np.random.default_rng(0)
    size = path.stat().st_size
    for byte in [0, size - 1, size - 2, *generator.integers(size, size=60)]:
        bit = int(generator.integers(8))
        flip_bit(path, int(byte), bit)
        with pytest.raises(DataError, match=r"index is damaged"):
            read_index(shard)
        flip_bit(path, int(byte), bit)
    assert len(read_index(shard)) == 14


def test_an_index_of_a_newer_format_is_refused(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = dataset.folder / "shard-000000.tar"
    index = read_index(shard)
    monkeypatch.setattr("data_pipelines.shards.index.VERSION", 99)
    write_index(shard, index)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"version 99.*d2v shards index --force"):
        read_index(shard)


def test_missing_files_are_named(dataset: Dataset) -> None:
    shard = dataset.folder / "shard-000001.tar"
    index_path(shard).unlink()
    with pytest.raises(DataError, match=r"shard-000001.tar.index.json: index is missing; 'd2v shards index"):
        read_index(shard)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-000001.tar: shard is missing"):
        read_index(shard)
