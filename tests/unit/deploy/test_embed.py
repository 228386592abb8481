"""Features by ``d2v embed`` are those of the encoder on each item alone, whatever shares its batch."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy
import psutil
import pytest
import soundfile
import torch
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open
from torch import Tensor

from data_pipelines.tokenizers.sentencepiece_model import train_sentencepiece
from data_pipelines.transforms.audio import load_audio
from data_pipelines.transforms.image import load_image
from deploy.cli import main
from deploy.embedding.files import writing
from deploy.export.encoder import load_encoder
from model.config import ModelConfig
from model.sections import AlibiConfig
from pretrain.checkpoint.store import locate
from pretrain.config import RunConfig
from pretrain.recipes.registry import RECIPES
from tests.unit.deploy.export.checkpoints import write_checkpoint
from tests.unit.deploy.export.encoders import audio, image, text
from tests.unit.deploy.export.fairseq_files import GOLDEN, imagenet, save

MODELS = {
    "image": image(image_size=28, patch_size=7, in_channels=1),
    "audio": audio(alibi=AlibiConfig()),
    "text": text(vocab_size=400, max_positions=64),
}


def trained(folder: Path, modality: str) -> tuple[Path, RunConfig]:
    config = dataclasses.replace(RECIPES[f"{modality}-tiny"](), model=MODELS[modality])
    write_checkpoint(folder / "run", config)
    return folder / "run", config


@torch.no_grad()
def tokens_of(run: Path, model: ModelConfig, source: Tensor) -> Tensor:
    """(T, D) of one item, alone."""
    ((modality, side),) = model.modalities.items()
    encoder = load_encoder(locate(run), model, "student")
    return encoder.features(source[None], modality=modality)[0, side.num_extra_tokens :]


def arrays(path: Path) -> dict[str, numpy.ndarray]:
    with numpy.load(path, allow_pickle=False) as file:
        return dict(file)


def close(ours: numpy.ndarray, expected: Tensor) -> bool:
    return ours.dtype == numpy.float32 and bool(numpy.abs(ours - expected.numpy()).max() < 5e-6)


def test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In three formats; what is no image is counted, with its reason."""
    run, config = trained(tmp_path, "image")
    assert config.data.image is not None
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    generator = numpy.random.default_rng(0)
    for name in ("b.png", "deep/a.png", "c.jpg"):
        Image.fromarray(generator.integers(0, 256, (40, 30), dtype=numpy.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.md").write_text("not looked at")
    files = [folder / "b.png", folder / "c.jpg", folder / "deep" / "a.png"]
    expected = [
        tokens_of(run, config.model, torch.from_numpy(load_image(f.read_bytes(), config.data.image))) for f in files
    ]
    pooled = torch.stack([tokens.mean(dim=0) for tokens in expected])
    outs = [tmp_path / f"features.{suffix}" for suffix in ("npz", "safetensors", "parquet")]
    for out in outs:
        assert main(["embed", str(run), str(folder), "--out", str(out), "--batch-size", "2"]) == 0
        said = capsys.readouterr().out
        assert f"3 images, 24 numbers each; 1 left out: 1 not a JPEG, PNG or WebP image ({folder}/broken.png)" in said
    found = arrays(outs[0])
    assert found["keys"].tolist() == list(map(str, files)) and close(found["features"], pooled)
    with safe_open(outs[1], "pt") as file:
        assert json.loads(file.metadata()["keys"]) == list(map(str, files))
        assert torch.equal(file.get_tensor("features"), torch.from_numpy(found["features"]))
    table = parquet.read_table(outs[2])
    assert table["key"].to_pylist() == list(map(str, files))
    assert numpy.array_equal(numpy.array(table["features"].to_pylist(), numpy.float32), found["features"])


def test_recordings_do_not_depend_on_their_neighbours(tmp_path: Path) -> None:
    run, config = trained(tmp_path, "audio")
    assert config.data.audio is not None
    generator = numpy.random.default_rng(0)
    for number, length in enumerate((2000, 900, 2007, 1400)):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * generator.standard_normal(length), 16_000)
    files = [tmp_path / f"{number}.wav" for number in range(4)]
    out = tmp_path / "frames.npz"
    assert main(["embed", str(run), *map(str, files), "--out", str(out), "--tokens"]) == 0
    found = arrays(out)
    expected = [
        tokens_of(run, config.model, torch.from_numpy(load_audio(file.read_bytes(), config.data.audio)))
        for file in files
    ]
    assert found["lengths"].tolist() == [len(tokens) for tokens in expected] == [12, 5, 12, 8]
    assert close(found["features"], torch.cat(expected))
    table = tmp_path / "frames.parquet"
    assert main(["embed", str(run), *map(str, files), "--out", str(table), "--tokens"]) == 0
    rows = parquet.read_table(table)["features"].to_pylist()
    assert numpy.array_equal(numpy.concatenate([numpy.array(row, numpy.float32) for row in rows]), found["features"])


def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By lines and by files, padding left out of the mean; a long text is cut, and said to be."""
    run, config = trained(tmp_path, "text")
    corpus = (Path(__file__).parents[3] / "LICENSE").read_text(encoding="utf-8")
    tokenizer = train_sentencepiece([corpus], 400)
    for name, content in tokenizer.files.items():
        (tmp_path / name).write_bytes(content)
    lines = ["one text", "", "another, somewhat longer text of several words", corpus[:2000].replace("\n", " ")]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    options = ["--tokenizer", str(tmp_path), "--lines"]
    assert main(["embed", str(run), str(tmp_path / "a.txt"), "--out", str(tmp_path / "a.npz"), *options]) == 0
    assert "3 texts, 24 numbers each; 1 text cut to the model's length" in capsys.readouterr().out
    found = arrays(tmp_path / "a.npz")
    assert found["keys"].tolist() == [f"{tmp_path}/a.txt:{number}" for number in (1, 3, 4)]
    ids = [torch.tensor([0, *tokenizer.encode(line.strip()), 2])[:64] for line in lines if line]
    assert len({len(row) for row in ids}) == 3
    expected = torch.stack([tokens_of(run, config.model, row).mean(dim=0) for row in ids])
    assert close(found["features"], expected)


@pytest.mark.parametrize("modality", MODELS)
def test_exported_folders(tmp_path: Path, modality: str) -> None:
    """Give what the run gives that they come from, stored in bf16 too; with the tokenizer that they hold."""
    run, _ = trained(tmp_path, modality)
    folder, rows = tmp_path / "hf", {}
    if modality == "text":
        corpus = (Path(__file__).parents[3] / "LICENSE").read_text(encoding="utf-8")
        for name, content in train_sentencepiece([corpus], 400).files.items():
            (tmp_path / name).write_bytes(content)
        (tmp_path / "a.txt").write_text("one text")
        given = [str(tmp_path / "a.txt"), "--tokenizer", str(tmp_path)]
    elif modality == "image":
        Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (40, 30), numpy.uint8)).save(tmp_path / "a.png")
        given = [str(tmp_path / "a.png")]
    else:
        soundfile.write(tmp_path / "a.wav", numpy.random.default_rng(0).standard_normal(2000), 16_000)
        given = [str(tmp_path / "a.wav")]
    options = [*given[1:], "--source", "teacher"]
    assert main(["export", "hf", str(run), str(folder), *options]) == 0
    assert main(["export", "hf", str(run), f"{folder}-bf16", "--dtype", "bf16", *options]) == 0
    assert main(["embed", str(run), "--out", str(tmp_path / "run.npz"), *given, "--source", "teacher"]) == 0
    for name in ("hf", "hf-bf16"):
        out = tmp_path / f"{name}.npz"
        assert main(["embed", str(tmp_path / name), given[0], "--out", str(out)]) == 0
        rows[name] = arrays(out)["features"]
    expected = arrays(tmp_path / "run.npz")["features"]
    assert numpy.array_equal(rows["hf"], expected)
    assert 1e-5 < numpy.abs(rows["hf-bf16"] - expected).max() < 0.2


def test_heads_of_exported_folders_are_left_out(tmp_path: Path) -> None:
    save(imagenet(GOLDEN / "image" / "mini"), tmp_path / "imagenet.pt")
    assert main(["import", "fairseq", str(tmp_path / "imagenet.pt"), str(tmp_path / "run")]) == 0
    assert main(["export", "hf", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    Image.new("RGB", (30, 40), (9, 200, 50)).save(tmp_path / "a.png")
    for name in ("run", "hf"):
        arguments = ["embed", str(tmp_path / name), str(tmp_path / "a.png"), "--out", str(tmp_path / f"{name}.npz")]
        assert main(arguments) == 0
    assert numpy.array_equal(arrays(tmp_path / "hf.npz")["features"], arrays(tmp_path / "run.npz")["features"])


@pytest.mark.parametrize("per_token", [False, True])
def test_files_take_rows_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_token: bool) -> None:
    """In many pieces; what other libraries read is what was put in."""
    monkeypatch.setattr("deploy.embedding.rows._PIECE_BYTES", 100)
    monkeypatch.setattr("deploy.embedding.files._KEYS_AT_ONCE", 4)
    generator = torch.Generator().manual_seed(0)
    keys = [f"{'ü' * (number % 5)}{number}" for number in range(11)]
    sizes = [(1 + number % 4, 6) if per_token else (6,) for number in range(11)]
    rows = [torch.randn(size, generator=generator) for size in sizes]
    for suffix in (".npz", ".safetensors", ".parquet"):
        with writing(tmp_path / f"a{suffix}", per_token=per_token) as file:
            for start in range(0, 11, 3):
                file.add(keys[start : start + 3], rows[start : start + 3])
    expected = torch.cat([row.view(-1, 6) for row in rows])
    found = arrays(tmp_path / "a.npz")
    assert found["keys"].tolist() == keys and numpy.array_equal(found["features"], expected.numpy())
    lengths = [len(row) for row in rows]
    assert found["lengths"].tolist() == lengths if per_token else "lengths" not in found
    with safe_open(tmp_path / "a.safetensors", "pt") as stored:
        assert json.loads(stored.metadata()["keys"]) == keys
        assert torch.equal(stored.get_tensor("features"), expected)
        assert set(stored.keys()) == {"features", *(["lengths"] if per_token else [])}
        assert not per_token or stored.get_tensor("lengths").tolist() == lengths
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table["key"].to_pylist() == keys and parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups > 1
    for row, stored_row in zip(rows, table["features"].to_pylist(), strict=True):
        assert numpy.array_equal(numpy.array(stored_row, numpy.float32), row.numpy())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """While rows are being written; nor do worker processes outlive Ctrl-C."""
    run, _ = trained(tmp_path, "image")
    out, photos = tmp_path / "out", tmp_path / "photos"
    out.mkdir()
    photos.mkdir()
    Image.new("L", (30, 30), 99).save(tmp_path / "a.png")
    for name in range(2000):
        (photos / f"{name}.png").hardlink_to(tmp_path / "a.png")
    command = [sys.executable, "-m", "deploy.cli", "embed", str(run), str(photos), "--out", str(out / "a.parquet")]
    with subprocess.Popen([*command, "--batch-size", "1", "--workers", "2"]) as process:
        while out not in folders_of_open_files(process.pid):
            assert process.poll() is None
            time.sleep(0.01)
        while len(children := psutil.Process(process.pid).children()) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(timeout=60) != 0
    assert list(out.iterdir()) == []
    if number == signal.SIGINT:  # killed outright, a parent is missed after seconds only
        assert not psutil.wait_procs(children, timeout=30)[1]


def folders_of_open_files(pid: int) -> set[Path]:
    folders = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            folders.add(handle.readlink().parent)
    return folders


def test_shards(tmp_path: Path, digit_shards: Path) -> None:
    config = RECIPES["image-tiny"]()
    write_checkpoint(tmp_path / "run", config)
    shards = sorted(digit_shards.glob("*.tar"))
    out = tmp_path / "digits.npz"
    assert main(["embed", str(tmp_path / "run"), str(shards[0]), str(digit_shards), "--out", str(out)]) == 0
    found = arrays(out)
    first = len(found["keys"]) - 256
    assert 0 < first <= 256 and found["features"].shape == (first + 256, 96)
    assert numpy.array_equal(found["keys"][:first], found["keys"][first : 2 * first])
    assert numpy.abs(found["features"][:first] - found["features"][first : 2 * first]).max() < 5e-6
    assert len(set(found["keys"].tolist())) == 256


def test_bad_input_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = trained(tmp_path, "image")
    assert main(["export", "hf", str(run), str(tmp_path / "hf")]) == 0
    for name in ("cut", "other", "lacking", "wider"):
        shutil.copytree(tmp_path / "hf", tmp_path / name)
    hf, cut, other, lacking, wider = (str(tmp_path / name) for name in ("hf", "cut", "other", "lacking", "wider"))
    os.truncate(tmp_path / "cut" / "model.safetensors", 20_000)
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "lacking" / "preprocessor_config.json").unlink()
    config = tmp_path / "wider" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 24', '"hidden_size": 48'))
    capsys.readouterr()
    monkeypatch.setattr("deploy.embedding.files._MAX_HEADER", 20)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    bad, out = str(tmp_path / "bad.png"), str(tmp_path / "out.npz")
    for arguments, expected in (
        ([str(run), bad, "--out", str(tmp_path / "out.csv")], "must end in .npz, .safetensors, .parquet"),
        ([str(run), bad, "--out", str(tmp_path / "none" / "out.npz")], "there is no folder"),
        ([str(run), bad, "--out", out], "nothing to write: 1 left out: 1 not a JPEG"),
        ([str(run), str(tmp_path / "empty"), "--out", out], "holds no image files (.jpg"),
        ([str(run), str(tmp_path / "nowhere"), "--out", out], "nowhere: does not exist"),
        ([str(tmp_path / "empty"), bad, "--out", out], "no checkpoint here"),
        ([str(run), bad, "--out", out, "--modality", "audio"], "--modality: the checkpoint has no audio, only image"),
        ([str(run), bad, "--out", str(tmp_path / "out.safetensors")], "a header of safetensors holds 20 bytes of keys"),
        ([hf, bad, "--out", out, "--source", "teacher"], "hf holds one encoder, chosen by 'd2v export hf --source'"),
        ([hf, bad, "--out", out, "--modality", "text"], "--modality: the checkpoint has no text, only image"),
        ([cut, bad, "--out", out], "cut/model.safetensors: cannot be read: "),
        ([other, bad, "--out", out], "other/config.json: not of 'd2v export hf'"),
        ([lacking, bad, "--out", out], "lacking/preprocessor_config.json: cannot be read: No such file"),
        ([wider, bad, "--out", out], "wider/model.safetensors: cannot be read: "),
        ([str(run), bad, "--out", out, "--device", "nothing"], "--device: nothing cannot be used"),
    ):
        assert main(["embed", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line, line
    assert sorted(tmp_path.rglob("*")) == before
