"""``d2v prepare`` and ``d2v shards`` as a user runs them."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from data_pipelines.shards.index import index_path, read_index
from data_pipelines.shards.manifest import read_manifest
from deploy.cli import main
from tests.unit.data_pipelines.photographs import encoded, flip_bit, write_shards
from tests.unit.data_pipelines.prepare.test_images import contents, make_tree
from tests.unit.data_pipelines.speech import encode, speech

D2V = [sys.executable, "-m", "deploy.cli"]


def start_prepare(source: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    options = ("--max-samples-per-shard", "25", "--workers", "2", *options)
    return subprocess.Popen(
        [*D2V, "prepare", "images", f"{source}", f"{out}", *options],
        stdout=subprocess.DEVNULL,
        preexec_fn=hear_interrupts,
    )


def hear_interrupts() -> None:
    """Whoever runs the tests in the background of a shell has interrupts ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Whole(NamedTuple):
    """A source, and what an unbroken preparation makes of it."""

    source: Path
    out: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    for label in ("a", "b"):
        (folder / "source" / label).mkdir(parents=True)
    for image in range(400):
        data = encoded(image, width=320, height=240)
        (folder / "source" / "ab"[image % 2] / f"{image}.jpg").write_bytes(data[:3000] if image % 50 == 0 else data)
    assert start_prepare(folder / "source", folder / "out").wait() == 0
    return Whole(folder / "source", folder / "out")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_preparation_is_finished_by_the_next(whole: Whole, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    killed = start_prepare(whole.source, out)
    while killed.poll() is None and len(list(out.glob("*.index.json"))) < 3:
        time.sleep(0.002)
    workers = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    killed.send_signal(number)
    assert killed.wait() != 0
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar") if index_path(path).exists()}
    assert 3 <= len(finished) < 16
    assert_ended(workers)
    assert start_prepare(whole.source, out).wait() == 0
    assert contents(out) == contents(whole.out)
    for name, modified in finished.items():
        assert (out / name).stat().st_mtime_ns == modified
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 8


def test_killed_parts_are_finished_by_the_next(whole: Whole, tmp_path: Path) -> None:
    """Two parts at the same time, as of an array job that is preempted and queued again."""
    out = tmp_path / "out"
    parts = [start_prepare(whole.source, out, "--part", f"{number}/2") for number in (1, 2)]
    while len(list(out.glob("*.index.json"))) < 3 and any(part.poll() is None for part in parts):
        time.sleep(0.002)
    for part in parts:
        part.kill()
    assert all(part.wait() != 0 for part in parts)
    assert main(["shards", "info", f"{out}"]) == 2
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar") if index_path(path).exists()}
    parts = [start_prepare(whole.source, out, "--part", f"{number}/2") for number in (2, 1)]
    assert [part.wait() for part in parts] == [0, 0]
    assert contents(out) == contents(whole.out)
    for name, modified in finished.items():
        assert (out / name).stat().st_mtime_ns == modified


def assert_ended(pids: list[str]) -> None:
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.02)


def test_summary_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_tree(tmp_path / "source")
    (source / "n02" / "notes.txt").write_text("text")
    out = tmp_path / "out"
    assert main(["prepare", "images", f"{source}", f"{out}"]) == 0
    assert f"{out}: 24 samples, 2 classes, 80.0 KiB in 1 shard, 1 rejected" in capsys.readouterr().out
    assert main(["shards", "info", f"{out}"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "24 samples in 1 shard",
        ".jpg     24 members",
        "2 classes, 12 to 12 samples each",
        "d2v prepare images",
    ):
        assert part in printed


def test_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "source" / "dev" / "1272"
    folder.mkdir(parents=True)
    for number in range(8):
        (folder / f"1272-{number}.flac").write_bytes(encode(speech(number, 1 + number / 4)))
    (folder / "1272.trans.txt").write_text("1272-3 HE SAID SO")
    (folder / "quiet.wav").touch()
    (folder / "cut.flac").write_bytes(encode(speech(9, 2))[:4_000])
    out = tmp_path / "out"
    assert main(["prepare", "speech", f"{tmp_path / 'source'}", f"{out}", "--max-seconds", "2.6"]) == 0
    first, *reasons = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: 7 samples, 12.2 s, ")
    assert first.endswith(f" in 1 shard, 3 rejected (all in {out}/rejected.jsonl):")
    assert "  1  is empty" in reasons
    assert any(line.startswith("  1  2.8 s are more than the cap of 2.6 s") for line in reasons)
    assert main(["shards", "info", f"{out}"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "  audio    12.2 s, 1.0 to 2.5 s, 1.8 s on average",
        "  rate     16,000 Hz",
        "  .txt     1 member, 10 B",
    ):
        assert line in printed.splitlines()
    assert "d2v prepare speech from" in printed
    picture = tmp_path / "sheet.png"
    show = ["shards", "preview", f"{out}", "--out", f"{picture}", "--recipe", "audio-tiny", "--num", "4"]
    assert main(show) == 0
    assert f"{picture}: 4 samples of {out} as audio-tiny sees them" in capsys.readouterr().out
    image = np.asarray(Image.open(picture).convert("RGB"))
    assert 0.05 < (image == (226, 229, 235)).all(axis=-1).mean() < 0.3  # half of three low bands


def test_text_in_parts_with_a_tokenizer_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, again = tmp_path / "source", tmp_path / "out", tmp_path / "again"
    source.mkdir()
    (source / "a.txt").write_text("\n".join(sentences(0, 12_000)))
    lines = [json.dumps({"body": line}) for line in sentences(12_000, 20_000)]
    with gzip.open(source / "b.jsonl.gz", "wt") as stream:
        stream.write("\n".join([*lines, "no json", '{"title": "x"}', "[]", "[]"]))
    (source / "notes.pdf").write_bytes(b"%PDF")
    options = ["--documents", "line", "--text-field", "body", "--tokens-per-sample", "64", "--shard-size-mb", "1"]
    assert main(["prepare", "text", f"{source}", f"{out}", *options, "--vocab-size", "290", "--part", "2/2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}: part 2/2 is made; 1 of 2 shards are left to the other parts\n"
    assert captured.err == "training a vocabulary of 290 tokens on 1.6 MiB of text\n"
    assert main(["prepare", "text", f"{source}", f"{out}", *options, "--vocab-size", "290", "--part", "1/2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # the tokenizer is there
    first, *reasons = captured.out.splitlines()
    manifest = read_manifest(out)
    assert manifest is not None
    assert first.startswith(f"{out}: {manifest.num_samples:,} samples, {64 * manifest.num_samples:,} tokens, ")
    assert first.endswith(f" in 2 shards, 5 rejected (all in {out}/rejected.jsonl):")
    assert reasons[0] == "  2  not a JSON object"
    assert main(["prepare", "text", f"{source}", f"{again}", *options, "--tokenizer", f"{out}", "--workers", "2"]) == 0
    assert contents(again) == contents(out)
    capsys.readouterr()
    assert main(["shards", "info", f"{out}"]) == 0
    tokens = f"  text     {64 * manifest.num_samples:,} tokens in blocks of up to 64; a vocabulary of 290"
    assert tokens in capsys.readouterr().out.splitlines()
    picture = tmp_path / "sheet.png"
    assert main(["shards", "preview", f"{out}", "--out", f"{picture}", "--recipe", "text-tiny"]) == 0
    assert f"{picture}: 3 samples of {out}" in capsys.readouterr().out
    image = np.asarray(Image.open(picture).convert("RGB"))
    assert 0.02 < (image == (226, 229, 235)).all(axis=-1).mean() < 0.4


def sentences(first: int, last: int) -> list[str]:
    words = ["the", "a", "student", "teacher", "reads", "writes", "sees", "hears", "part", "of", "text", "again"]
    draws = np.random.default_rng(0).integers(len(words), size=(last, 15))[first:]
    return [" ".join(words[word] for word in draw) for draw in draws]


def test_text_of_the_standard_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "english.txt"
    assert main(["prepare", "stdlib", f"{out}"]) == 0
    number = len(out.read_text().split("\n\n"))
    assert capsys.readouterr().out.startswith(f"{out}: {number:,} documents, ")
    assert out.stat().st_size > 1 << 20


def test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = ["--pretrain", "30", "--bank", "20", "--test", "10", "--seed", "3"]
    assert main(["prepare", "digits", f"{tmp_path / 'digits'}", *numbers]) == 0
    printed = capsys.readouterr().out
    for part in ("pretrain: 30 samples, no labels", "bank: 20 samples, 10 classes", "test: 10 samples, 10 classes"):
        assert part in printed


def test_foreign_shards_are_indexed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path)
    for path in tmp_path.glob("*.json"):
        path.unlink()
    assert main(["shards", "verify", f"{tmp_path}"]) == 1
    assert "index is missing" in capsys.readouterr().out
    assert main(["shards", "index", f"{tmp_path}"]) == 0
    assert "42 samples in 3 shards; 3 indexed now, 0 had an index" in capsys.readouterr().out
    shutil.copy(tmp_path / "shard-000000.tar", tmp_path / "shard-000003.tar")
    assert main(["shards", "index", f"{tmp_path}"]) == 0
    assert "56 samples in 4 shards; 1 indexed now, 3 had an index" in capsys.readouterr().out
    assert main(["shards", "index", "--force", f"{tmp_path}"]) == 0
    assert "4 indexed now" in capsys.readouterr().out
    assert main(["shards", "verify", f"{tmp_path}"]) == 0
    assert "whole: 4 shards, 56 samples" in capsys.readouterr().out


def test_verify_lists_all_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path)
    first, second, third = sorted(tmp_path.glob("*.tar"))
    for row in (2, 9):
        flip_bit(first, int(read_index(first).columns["jpg"].offset[row]))
    flip_bit(second, 5)  # the name in the first header
    os.truncate(third, int(read_index(third).columns["jpg"].offset[12]) + 1)
    assert main(["shards", "verify", f"{tmp_path}"]) == 1
    *problems, verdict = capsys.readouterr().out.splitlines()
    assert [line.removeprefix(f"{tmp_path}/") for line in problems] == [
        "shard-000000.tar: sample 'china/002': member .jpg fails its CRC-32",
        "shard-000000.tar: sample 'flower/009': member .jpg fails its CRC-32",
        "shard-000001.tar: not a whole, uncompressed tar archive (bad checksum)",
        f"shard-000002.tar: has {third.stat().st_size:,} bytes, its index says {read_size(third):,}",
        "shard-000002.tar: sample 'flower/041': member .cls fails its CRC-32",
        "shard-000002.tar: sample 'china/040': member .jpg fails its CRC-32",
        "shard-000002.tar: sample 'flower/041': member .jpg fails its CRC-32",
    ]
    assert verdict.startswith("DAMAGED: 3 of 3 shards, 4 of 42 samples (")


def read_size(shard: Path) -> int:
    return int(json.loads(index_path(shard).read_text())["shard_size_bytes"])


@pytest.mark.parametrize("recipe", ["image-base", "image-tiny"])
def test_preview_shows_crops_and_masks(tmp_path: Path, recipe: str) -> None:
    write_shards(tmp_path)
    out = tmp_path / "sheet.png"
    assert main(["shards", "preview", f"{tmp_path}", "--out", f"{out}", "--num", "5", "--recipe", recipe]) == 0
    image = np.asarray(Image.open(out).convert("RGB"))
    removed = (image == (226, 229, 235)).all(axis=-1).mean()
    assert 0.2 < removed < 0.5  # most of three tiles in four, less margins
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "images", "nowhere", "out"], "nowhere: does not exist"),
        (["prepare", "images", "source", "source/out"], "lies inside the source"),
        (["prepare", "images", "source", "/proc/out"], "/proc/out: cannot be written"),
        (["prepare", "images", "empty", "out"], "empty: holds no images"),
        (["prepare", "speech", "empty", "out"], "empty: holds no recordings (WAV, FLAC"),
        (["prepare", "stdlib", "."], ".: is a folder; name a file"),
        (["prepare", "images", "source", "out", "--part", "0/3"], "--part: '0/3' is not I/N with I from 1 to N"),
        (["prepare", "speech", "source", "out", "--part", "4/3"], "--part: '4/3' is not I/N with I from 1 to N"),
        (["prepare", "text", "nowhere", "out", "--part", "1"], "--part: '1' is not I/N with I from 1 to N"),
        (["prepare", "speech", "nowhere", "out"], "nowhere: does not exist"),
        (["prepare", "speech", "cut.tar", "out"], "cut.tar: is neither a folder of recordings nor a .tsv"),
        (["prepare", "text", "source", "out"], "source: holds no .txt or .jsonl file"),
        (["prepare", "text", "few.txt", "out"], "few.txt: the vocabulary cannot be trained: the text is too small"),
        (["prepare", "text", "few.txt", "out", "--vocab-size", "3"], "3 tokens cannot hold the specials, 256 bytes"),
        (["prepare", "text", "few.txt", "out", "--tokenizer", "nowhere"], "nowhere: does not exist; a tokenizer is"),
        (["prepare", "text", "few.txt", "out", "--tokens-per-sample", "1"], "--tokens-per-sample: must be at least 2"),
        (["prepare", "text", "few.txt", "source", "--vocab-size", "270"], "source: exists and is not empty"),
        (["prepare", "digits", "/proc/out"], "/proc/out/pretrain: cannot be written"),
        (["shards", "info", "source"], "holds no .tar shards"),
        (["shards", "info", "nowhere"], "nowhere: there is no such folder of shards or .tar"),
        (["shards", "info", "pipe:ls"], "is a URL or a command"),
        (["shards", "index", "cut.tar"], "cut.tar: not a whole, uncompressed tar archive"),
        (["shards", "preview", "shards", "--recipe", "image-bose"], "did you mean image-base?"),
        (["shards", "preview", "shards", "--out", "/proc/sheet.png"], "/proc/sheet.png: cannot be written"),
        (["shards", "preview", "shards", "--modality", "text"], "--modality: image-base has no text, only image"),
        (["shards", "preview", "shards", "--recipe", "audio-base"], "shards: holds no recordings"),
        (["shards", "preview", "shards", "--recipe", "text-base"], "has no text member (.npy), only .cls, .jpg"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_tree(tmp_path / "source", num_per_class=1)
    write_shards(tmp_path / "shards", num_shards=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "few.txt").write_text("A few words.")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "shards" / "shard-000000.tar").read_bytes()[: 512 * 6])
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("d2v: error: ")
    assert message in line
