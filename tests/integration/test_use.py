"""What a finished run is used for: evaluate, export, report; on a real run of two processes."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel

import deploy.export.registration  # noqa: F401  AutoModel needs it
from data_pipelines.loader import labelled_images
from data_pipelines.reader import Reader
from deploy.cli import main
from pretrain.checkpoint.progress import read_run_config
from pretrain.checkpoint.store import locate
from pretrain.evaluate.encoder import trained_encoder, untrained_encoder
from tests.distributed.launch import run_ranks
from tests.unit.deploy.test_report_page import TITLES

NUM_STEPS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digit_shards: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("use") / "run"
    options = [f"--training.max-steps={NUM_STEPS}", "--schedule.warmup-steps=3", "--logging.every-steps=2"]
    options += [
        "--training.global-batch-size=8",
        "--health.every-steps=4",
        "--ema.start=0.8",
        "--ema.end=0.8",
        "--logging.tensorboard=false",
    ]
    run_ranks("deploy.cli", ["train", "image-tiny", f"--run-dir={run_dir}", f"--data.path={digit_shards}", *options], 2)
    return run_dir


def labelled(digits: Path) -> list[str]:
    return ["--bank", str(digits / "bank"), "--test", str(digits / "test")]


def inputs(run: Path, shards: Path) -> tuple[torch.Tensor, numpy.ndarray]:
    """All images (N, C, H, W) and labels of a folder, read by this process."""
    data = dataclasses.replace(read_run_config(locate(run)).data, num_workers=0)
    images, labels = zip(*labelled_images(data, str(shards), 50), strict=True)
    return torch.cat(images), torch.cat(labels).numpy()


@torch.no_grad()
def expected_accuracies(run: Path, digits: Path, classifier: object) -> dict[str, float]:
    """The protocol by scikit-learn, on features computed in one piece."""
    (bank, bank_labels), (test, test_labels) = inputs(run, digits / "bank"), inputs(run, digits / "test")
    trained = trained_encoder(locate(run), "student")
    untrained = untrained_encoder(read_run_config(locate(run)))
    features = {
        "trained": lambda images: trained.features(images, modality="image")[:, 1:].mean(dim=1),
        "untrained": lambda images: untrained.features(images, modality="image")[:, 1:].mean(dim=1),
        "standardised": lambda images: images.flatten(1),
    }
    found = {}
    for name, encode in features.items():
        seen, unseen = encode(bank).numpy(), encode(test).numpy()
        scaler = StandardScaler().fit(seen)
        classifier.fit(scaler.transform(seen), bank_labels)
        found[name] = classifier.score(scaler.transform(unseen), test_labels)
        if name == "standardised":
            found["plain"] = classifier.fit(seen, bank_labels).score(unseen, test_labels)
    return found


def test_knn_equals_scikit_learn(run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "evaluation.json"
    assert main(["eval", "knn", str(run), *labelled(digits), "--json", str(out), "--batch-size", "50"]) == 0
    values = json.loads(out.read_text())["knn"]
    expected = expected_accuracies(
        run,
        digits,
        KNeighborsClassifier(20, metric="cosine", weights=lambda distance: numpy.exp((1 - distance) / 0.07)),
    )
    assert values["trained"] == pytest.approx(expected["trained"], abs=1e-9)
    assert values["untrained"] == pytest.approx(expected["untrained"], abs=1e-9)
    assert values["pixels"] == pytest.approx(max(expected["standardised"], expected["plain"]), abs=1e-9)
    assert (values["num_bank"], values["num_test"], values["num_classes"], values["chance"]) == (128, 64, 10, 0.1)
    assert (values["step"], values["source"]) == (NUM_STEPS, "student")
    printed = capsys.readouterr().out
    for line in (
        "128 bank and 64 test images, 10 classes",
        "chance              10.0 %",
        f"untrained encoder {100 * values['untrained']:6.1f} %",
        f"trained encoder   {100 * values['trained']:6.1f} %",
    ):
        assert line in printed


def test_probe_equals_scikit_learn(run: Path, digits: Path, tmp_path: Path) -> None:
    """And a second protocol joins the first in the same file."""
    out = tmp_path / "evaluation.json"
    assert main(["eval", "knn", str(run), *labelled(digits), "--json", str(out), "--no-baselines"]) == 0
    assert main(["eval", "probe", str(run), *labelled(digits), "--json", str(out), "--l2", "0.1"]) == 0
    content = json.loads(out.read_text())
    assert list(content) == ["knn", "probe"] and content["knn"]["untrained"] is None
    expected = expected_accuracies(run, digits, LogisticRegression(C=1 / (0.1 * 128), max_iter=3000, tol=1e-7))
    assert content["probe"]["trained"] == pytest.approx(expected["trained"], abs=1 / 64 + 1e-9)
    assert content["probe"]["untrained"] == pytest.approx(expected["untrained"], abs=1 / 64 + 1e-9)
    assert content["probe"]["pixels"] == pytest.approx(expected["standardised"], abs=1 / 64 + 1e-9)


def test_all_protocols_in_one_pass_give_the_same_numbers(run: Path, digits: Path, tmp_path: Path) -> None:
    single, both = tmp_path / "single.json", tmp_path / "both.json"
    for protocol in ("knn", "probe"):
        assert main(["eval", protocol, str(run), *labelled(digits), "--json", str(single)]) == 0
    assert main(["eval", "all", str(run), *labelled(digits), "--json", str(both)]) == 0
    assert json.loads(both.read_text()) == json.loads(single.read_text())


def test_report_of_a_real_run(run: Path, digits: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with (copy / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "step": 14, "lo')
    assert main(["eval", "knn", str(run), *labelled(digits), "--json", str(copy / "evaluation.json")]) == 0
    assert main(["report", str(copy)]) == 0
    page = (copy / "report.html").read_text()
    assert set(re.findall(r"<h3>(.*?)</h3>", page)) == TITLES
    for text in (
        "finished",
        "image-tiny on 2 x cpu",
        f"{NUM_STEPS} of {NUM_STEPS}",
        "k nearest neighbours",
        "1 unreadable line",
    ):
        assert text in page, text
    assert main(["report", str(copy), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == page


@torch.no_grad()
def test_exports_equal_our_model(run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images, _ = inputs(run, digits / "test")
    outputs = {}
    for source in ("student", "teacher"):
        assert main(["export", "hf", str(run), str(tmp_path / source), "--source", source]) == 0
        assert "largest difference to our model: 0.0 on 4 images of" in capsys.readouterr().out
        outputs[source] = AutoModel.from_pretrained(tmp_path / source)(images).last_hidden_state
        assert torch.equal(outputs[source], trained_encoder(locate(run), source).features(images, modality="image"))
        card = (tmp_path / source / "README.md").read_text()
        assert f"{source} after step {NUM_STEPS} of {NUM_STEPS}, stored as fp32" in card and "init_std: 0.06" in card
    assert not torch.allclose(outputs["student"], outputs["teacher"], atol=1e-3)
    names = {"README.md", "config.json", "model.safetensors", "modeling_data2vec2.py", "preprocessor_config.json"}
    assert {path.name for path in (tmp_path / "student").iterdir()} == names
    assert {path.name for path in tmp_path.iterdir()} == {"student", "teacher"}


STRANGER = """
import importlib.util, sys
sys.path.append({site!r})
assert not any(importlib.util.find_spec(name) for name in ("deploy", "model", "pretrain", "data_pipelines"))
from safetensors.torch import load_file, save_file
from transformers import AutoModel
model = AutoModel.from_pretrained({folder!r}, trust_remote_code=True)
images = load_file({images!r})["images"]
save_file({{"output": model(images).last_hidden_state.detach()}}, {output!r})
"""


def test_export_loads_where_we_are_not_installed(run: Path, digits: Path, tmp_path: Path) -> None:
    """A process that knows site-packages (without .pth files) and the folder only, and is somewhere else."""
    folder, output = tmp_path / "export", tmp_path / "output.safetensors"
    assert main(["export", "hf", str(run), str(folder)]) == 0
    images, _ = inputs(run, digits / "test")
    save_file({"images": images}, tmp_path / "images.safetensors")
    script = STRANGER.format(
        site=sysconfig.get_paths()["purelib"],
        folder=str(folder),
        images=str(tmp_path / "images.safetensors"),
        output=str(output),
    )
    stranger = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        cwd="/",
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert stranger.returncode == 0, stranger.stderr
    for complaint in ("warn", "newly initialized", "not used", "missing", "unexpected"):
        assert complaint not in stranger.stderr.lower(), stranger.stderr
    with torch.no_grad():
        ours = trained_encoder(locate(run), "student").features(images, modality="image")
    assert torch.equal(load_file(output)["output"], ours)


def one_line(capsys: pytest.CaptureFixture, arguments: list[str]) -> str:
    """The single line that bad input gives."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("d2v: error: ") and not captured.out, captured
    return lines[0]


def test_bad_input_gives_one_line(run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    nowhere, occupied = str(tmp_path / "nowhere"), tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "mine").touch()
    unlabelled = ["--bank", str(digits / "pretrain"), "--test", str(digits / "test")]
    wrong_json = tmp_path / "mine.json"
    wrong_json.write_text('{"knn": {"colour": 3}}')
    for arguments, expected in (
        (["export", "hf", nowhere, str(tmp_path / "out")], f"{nowhere}: no checkpoint here"),
        (["export", "hf", str(run), str(occupied)], f"{occupied}: exists and is not empty"),
        (["export", "hf", str(run), str(occupied / "mine" / "out")], f"{occupied}/mine/out: cannot be written"),
        (["eval", "knn", nowhere, *labelled(digits)], f"{nowhere}: no checkpoint here"),
        (["eval", "knn", str(run), *unlabelled], "sample 'pretrain-0000000': carries no label"),
        (["eval", "knn", str(run), "--bank", nowhere, "--test", nowhere], f"{nowhere}: "),
        (["eval", "knn", str(run), *labelled(digits), "--k", "500"], "--k: 500 neighbours asked for, the bank has 128"),
        (["eval", "probe", str(run), *labelled(digits), "--l2", "0"], "--l2: must be above 0"),
        (["eval", "probe", str(run), *labelled(digits), "--device", "abacus"], "--device: abacus cannot be used"),
        (["eval", "knn", str(run), *labelled(digits), "--json", str(wrong_json)], "mine.json: not written by d2v eval"),
        (["report", nowhere], "metrics.jsonl: no such file"),
        (["report", str(run), "--out", str(occupied)], f"{occupied}: is a folder; name a file"),
    ):
        assert expected in one_line(capsys, arguments), arguments
    assert {path.name for path in tmp_path.iterdir()} == {"occupied", "mine.json"}
    assert [path.name for path in occupied.iterdir()] == ["mine"]


def test_damaged_checkpoint_exports_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(locate(run), checkpoint)
    weights = checkpoint / "rank-00001.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    line = one_line(capsys, ["export", "hf", str(checkpoint), str(tmp_path / "out")])
    assert str(weights) in line and "cannot be read" in line
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}


def test_weights_of_another_model_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(locate(run), checkpoint)
    config = checkpoint / "config.yaml"
    config.write_text(config.read_text().replace("mlp_ratio: 4.0", "mlp_ratio: 2.0"))
    line = one_line(capsys, ["export", "hf", str(checkpoint), str(tmp_path / "out")])
    assert "mlp" in line and "does not fit the model of its config.yaml" in line


def test_without_the_data_noise_is_compared(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(locate(run), checkpoint)
    config = checkpoint / "config.yaml"
    path = re.search(r"^  path: (.*)$", config.read_text(), re.MULTILINE)
    assert path and len(Reader(path[1])) == 256
    config.write_text(config.read_text().replace(path[1], str(tmp_path / "gone")))
    assert main(["export", "hf", str(checkpoint), str(tmp_path / "out"), "--dtype", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert "largest difference to our model: 0.0 on 4 random images; rounding to the smaller type moves" in printed
