import json
import os
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.prepare.folder import Part, write_folder
from data_pipelines.prepare.speech import plan_speech
from data_pipelines.reader import Reader, Sample
from data_pipelines.shards.manifest import DatasetManifest
from tests.unit.data_pipelines.shards.test_index import through_reader, through_webdataset
from tests.unit.data_pipelines.speech import encode, speech


def prepare(source: Path, out: Path, *, num_workers: int = 1, **options: float) -> DatasetManifest:
    limits = {"shard_size_bytes": 1 << 20, "max_samples_per_shard": 5, "max_seconds": 30.0, **options}
    return write_folder(plan_speech(source, out, **limits), out, num_workers=num_workers, report=lambda done: None)


def make_tree(folder: Path) -> dict[str, bytes]:
    """LibriSpeech's layout: two speakers, two chapters of each, two utterances of each; returns files by key."""
    files = {}
    for speaker, chapter in ((84, 121), (84, 122), (1272, 128), (1272, 135)):
        place = folder / "dev-clean" / str(speaker) / str(chapter)
        place.mkdir(parents=True)
        for number in range(2):
            name = f"{speaker}-{chapter}-{number:04d}"
            data = encode(speech(speaker + number, 0.4 + 0.1 * number))
            (place / f"{name}.flac").write_bytes(data)
            files[f"dev-clean/{speaker}/{chapter}/{name}"] = data
        transcript = "".join(
            f"{speaker}-{chapter}-{number:04d} SPOKEN BY {speaker} NUMBER {number}\n" for number in (0, 1)
        )
        (place / f"{speaker}-{chapter}.trans.txt").write_text(transcript)
    (folder / "SPEAKERS.TXT").write_text("84 | F\n1272 | M\n")
    return files


def samples_of(folder: Path) -> list[Sample]:
    reader = Reader(str(folder))
    return [reader.read(number) for number in range(len(reader))]


def rejected(folder: Path) -> dict[str, str]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return {one["source"]: one["reason"] for one in map(json.loads, lines)}


def test_a_tree_as_librispeech_with_transcripts(tmp_path: Path) -> None:
    files = make_tree(tmp_path / "source")
    manifest = prepare(tmp_path / "source", tmp_path / "out")
    samples = samples_of(tmp_path / "out")
    assert [sample.key for sample in samples] == sorted(files)
    for sample in samples:  # the original bytes
        _, speaker, _, name = sample.key.split("/")
        transcript = f"SPOKEN BY {speaker} NUMBER {int(name[-4:])}".encode()
        assert sample.members == {"flac": files[sample.key], "txt": transcript}
    assert (manifest.kind, manifest.num_samples, manifest.num_rejected) == ("speech", 8, 0)
    assert manifest.amounts == {"seconds": pytest.approx(4 * 0.4 + 4 * 0.5)}
    assert len(manifest.shards) == 2  # 5 + 3
    assert through_webdataset(tmp_path / "out") == through_reader(tmp_path / "out")


def test_durations_are_indexed(tmp_path: Path) -> None:
    make_tree(tmp_path / "source")
    (tmp_path / "source" / "a.mp3").write_bytes(encode(speech(1, 1, 44_100), 44_100, "MP3"))
    prepare(tmp_path / "source", tmp_path / "out")
    reader = Reader(str(tmp_path / "out"))
    assert sorted(reader.num_frames().tolist()) == [6_400] * 4 + [8_000] * 4 + [44_100]
    assert sorted(set(reader.sample_rates().tolist())) == [16_000, 44_100]


def test_what_is_not_a_whole_recording_is_listed_with_its_reason(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    files = {
        "good.WAV": encode(speech(1, 1, 8_000), 8_000, "WAV"),
        "stereo.mp3": encode(np.stack([speech(1, 1, 44_100)] * 2, axis=1), 44_100, "MP3"),
        "opus.oga": encode(speech(2, 1), 16_000, "OGG", "OPUS"),
        "really_flac.wav": encode(speech(3, 1)),
        "cut.flac": encode(speech(4, 1))[:-3000],
        "cut.wav": encode(speech(4, 1), 16_000, "WAV")[:-3000],
        "empty.wav": b"",
        "one.wav": encode(np.ones(1, np.float32) / 2, 16_000, "WAV"),
        "nan.wav": encode(np.full(16_000, np.nan, np.float32), 16_000, "WAV", "FLOAT"),
        "hours.flac": encode(np.zeros(3 * 3600 * 1000, np.float32), 1_000),
        "text.ogg": b"no sound",
        "phone.m4a": b"\0\0\0\x20ftypM4A ",
        "notes.txt": b"not meant to be a recording",
    }
    for name, data in files.items():
        (source / name).write_bytes(data)
    (source / "gone.flac").symlink_to(source / "nowhere.flac")
    manifest = prepare(source, tmp_path / "out", max_samples_per_shard=4)
    members = {sample.key: set(sample.members) for sample in samples_of(tmp_path / "out")}
    assert members == {"good": {"wav"}, "stereo": {"mp3"}, "opus": {"ogg"}, "really_flac": {"flac"}}
    reasons = rejected(tmp_path / "out")
    assert (manifest.num_samples, manifest.num_rejected) == (4, len(reasons))
    assert reasons.pop("cut.wav") == "cut short: 29,000 of 32,000 bytes of samples are there"
    assert reasons.pop("cut.flac").startswith("cannot be decoded: ")
    assert reasons.pop("nan.wav").startswith("holds samples that are infinite, no numbers (NaN)")
    assert reasons.pop("gone.flac") == "cannot be read: No such file or directory"
    assert reasons == {
        "empty.wav": "is empty",
        "one.wav": "holds 1 samples, less than 25 ms",
        "hours.flac": "10,800.0 s are more than the cap of 30.0 s (data.audio.max_decoded_seconds)",
        "text.ogg": "not a WAV, FLAC, OGG or MP3 recording",
        "phone.m4a": "not a WAV, FLAC, OGG or MP3 recording",
    }
    assert manifest.amounts["seconds"] == pytest.approx(4.0, abs=0.01)


def test_a_manifest_of_fairseq(tmp_path: Path) -> None:
    files = make_tree(tmp_path / "audio")
    manifest = tmp_path / "train.tsv"
    names = [f"{key}.flac" for key in sorted(files, reverse=True)][:5]
    lines = [str(tmp_path / "audio"), *(f"{name}\t99" for name in names), "dev-clean/lost.flac\t16000"]
    manifest.write_text("\n".join(lines) + "\n")
    prepared = prepare(manifest, tmp_path / "out")
    samples = samples_of(tmp_path / "out")
    assert [f"{sample.key}.flac" for sample in samples] == names  # in its order
    assert all(sample.members["flac"] == files[sample.key] and "txt" in sample.members for sample in samples)
    assert rejected(tmp_path / "out") == {"dev-clean/lost.flac": "cannot be read: No such file or directory"}
    assert prepared.num_rejected == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"m.tsv: its first line names the root folder '', which does not exist; mend that line"),
        (b"/no/such/folder\na.flac\t1\n", r"names the root folder '/no/such/folder', which does not exist"),
        (b"/\na.flac 16000\n", r"m.tsv: line 2: is not PATH<tab>NUMBER OF SAMPLES"),
        (b"/\na.flac\t1\n\n", r"m.tsv: line 3: is not PATH"),
        (b"\xff\xfe/", r"m.tsv: is not UTF-8 text"),
    ],
)
def test_bad_manifests_are_explained(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.tsv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "m.tsv", tmp_path / "out")


def test_other_sources_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "README").write_text("empty")
    cases = {
        tmp_path / "nothing": r"nothing: does not exist",
        tmp_path / "a.zip": r"a.zip: is neither a folder of recordings nor a .tsv manifest of fairseq",
        tmp_path / "tree": r"tree: holds no recordings \(",
        tmp_path: r"out: lies inside the source",
    }
    for source, message in cases.items():
        with pytest.raises(DataError, match=message):
            prepare(source, tmp_path / "out")


def test_transcripts_that_are_no_text_name_their_file(tmp_path: Path) -> None:
    make_tree(tmp_path / "source")
    bad = tmp_path / "source/dev-clean/84/121/84-121.trans.txt"
    bad.write_bytes(b"84-121-0000 \xff\xff")
    with pytest.raises(DataError, match=r"84-121.trans.txt: is not UTF-8 text; mend or remove it"):
        prepare(tmp_path / "source", tmp_path / "out")


def test_transcripts_may_be_missing_or_empty(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in "abc":
        (tmp_path / "source" / f"{name}.flac").write_bytes(encode(speech(1, 0.3)))
    (tmp_path / "source" / "x.trans.txt").write_text("\na\tGRÜSSE  AN ALLE \nb\nunknown WORDS\n", encoding="utf-8")
    prepare(tmp_path / "source", tmp_path / "out")
    transcripts = {sample.key: sample.members.get("txt") for sample in samples_of(tmp_path / "out")}
    assert transcripts == {"a": "GRÜSSE  AN ALLE".encode(), "b": b"", "c": None}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_workers_and_parts_give_the_same_bytes(tmp_path: Path) -> None:
    make_tree(tmp_path / "source")
    (tmp_path / "source" / "bad.flac").write_bytes(b"bad")
    prepare(tmp_path / "source", tmp_path / "one", max_samples_per_shard=2)
    prepare(tmp_path / "source", tmp_path / "two", max_samples_per_shard=2, num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for number in (2, 1):
        plan = plan_speech(
            tmp_path / "source",
            tmp_path / "parts",
            shard_size_bytes=1 << 20,
            max_samples_per_shard=2,
            max_seconds=30.0,
        )
        seen: list[int] = []
        part = Part(number, 2)
        write_folder(plan, tmp_path / "parts", num_workers=1, report=seen.append, part=part)
        assert seen[-1] == plan.total(part)
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")


def test_another_transcript_or_limit_is_another_data_set(tmp_path: Path) -> None:
    make_tree(tmp_path / "source")
    prepare(tmp_path / "source", tmp_path / "out")
    prepare(tmp_path / "source", tmp_path / "out")  # the same: nothing to do
    with pytest.raises(DataError, match="holds another data set"):
        prepare(tmp_path / "source", tmp_path / "out", max_seconds=20.0)
    (tmp_path / "source/dev-clean/84/121/84-121.trans.txt").write_text("84-121-0000 OTHER WORDS\n")
    with pytest.raises(DataError, match="holds another data set"):
        prepare(tmp_path / "source", tmp_path / "out")


def test_shards_are_cut_by_size(tmp_path: Path) -> None:
    make_tree(tmp_path / "source")
    size = max(os.path.getsize(path) for path in (tmp_path / "source").rglob("*.flac"))
    manifest = prepare(tmp_path / "source", tmp_path / "out", shard_size_bytes=3 * (size + 2048))
    assert len(manifest.shards) == 3
    assert len(prepare(tmp_path / "source", tmp_path / "each", shard_size_bytes=1).shards) == 8
