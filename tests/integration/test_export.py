"""Conversion as users do it: by commands, by the examples of docs/converting.md, and where we are not installed."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections import OrderedDict
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from torch import Tensor

import deploy.export.registration  # noqa: F401  the Auto classes need it
from data_pipelines.tokenizers.load import load_tokenizer
from deploy.cli import main
from deploy.export.standalone import FILE_NAME
from tests.unit.data_pipelines.tokenizers.gpt2 import write_files
from tests.unit.deploy.export.fairseq_files import GOLDEN, ctc, glue, golden, imagenet, pretrained, save

DOCUMENT = Path(__file__).parents[2] / "docs" / "converting.md"
SHARED = Path(__file__).parents[3] / "shared" / "golden"
INPUTS = {"image": "pixel_values", "audio": "input_values", "text": "input_ids"}
CASES = [GOLDEN / modality / "mini" for modality in INPUTS]
CASES += [SHARED / modality / "base_tiny" for modality in INPUTS if SHARED.is_dir()]


def batch_of(tensors: dict[str, Tensor], modality: str) -> dict[str, Tensor]:
    """A golden's input in transformers' words."""
    padding = tensors.get("input.padding_mask")
    mask = {} if padding is None else {"attention_mask": 1 - padding.long()}
    return {INPUTS[modality]: tensors["input.source"]} | mask


def exported(case: Path, folder: Path) -> Path:
    """A golden through the two commands."""
    save(pretrained(case), folder / "model.pt")
    assert main(["import", "fairseq", str(folder / "model.pt"), str(folder / "run")]) == 0
    assert main(["export", "hf", str(folder / "run"), str(folder / "hf"), "--source", "student"]) == 0
    return folder / "hf"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def test_imported_model_has_the_references_features(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModel

    _, tensors = golden(case)
    model = AutoModel.from_pretrained(exported(case, tmp_path), trust_remote_code=True)
    assert "(largest difference to our model: 0.0 on 4 random " in capsys.readouterr().out
    with torch.no_grad():
        output = model(**batch_of(tensors, case.parent.name))
    features = output.last_hidden_state[:, model.config.num_extra_tokens :]
    assert (features - tensors["features.x"]).abs().max() < 1e-5
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "The weights are those of `model.pt`, a file of fairseq" in card and "nearest recipe" in card


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def test_examples_of_the_document_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(with_room(pretrained(GOLDEN / "text" / "mini")), tmp_path / "nlp_base.pt")
    save(pretrained(GOLDEN / "image" / "mini"), tmp_path / "base_imagenet.pt")
    save(ctc(GOLDEN / "audio" / "mini"), tmp_path / "base_libri_960h.pt")
    write_files(tmp_path / "gpt2", DOCUMENT.read_text(encoding="utf-8"), 100)
    Image.new("RGB", (80, 60), (200, 10, 90)).save(tmp_path / "photo.png")
    (tmp_path / "notes.txt").write_text("one text\nanother, longer text\n")
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 12
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "d2v" and main(arguments) == 0, command
    found: dict[str, Any] = {}
    features = []
    for example in blocks("python"):
        assert len(example.splitlines()) <= 10
        exec(compile(example, str(DOCUMENT), "exec"), found)
        features.append(found["features"])
    assert features[0].shape == (1, 32)
    ours = found["output"].pooler_output.detach()
    assert (features[-1] - ours).abs().max() < 1e-6
    assert numpy.abs(found["pooled"] - ours.numpy()).max() < 1e-5
    embedded = numpy.array(parquet.read_table("features.parquet")["features"].to_pylist())
    assert numpy.abs(embedded - ours.numpy()).max() < 1e-5
    assert found["frames"].tolist() == [49, 37]
    assert found["output"].last_hidden_state.shape[0] == 2


def with_room(checkpoint: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A model of text with a vocabulary of 1,000."""
    name = f"{prefix}modality_encoders.TEXT.local_encoder.embed_tokens.weight"
    checkpoint["model"] = OrderedDict(checkpoint["model"] | {name: torch.randn(1000, 32)})
    return checkpoint


def test_pipelines_of_text(tmp_path: Path) -> None:
    """Features and classes of a text, through the tokenizer of the folder, are those of our own tokenizer's tokens."""
    from transformers import AutoModel, pipeline

    write_files(tmp_path / "gpt2", DOCUMENT.read_text(encoding="utf-8"), 100)
    tokenizer = load_tokenizer(tmp_path / "gpt2")
    tasks = {
        "feature-extraction": pretrained(GOLDEN / "text" / "mini"),
        "text-classification": glue(GOLDEN / "text" / "mini"),
    }
    results = {}
    for task, checkpoint in tasks.items():
        save(with_room(checkpoint, "model." if task == "text-classification" else ""), tmp_path / f"{task}.pt")
        assert main(["import", "fairseq", str(tmp_path / f"{task}.pt"), str(tmp_path / f"{task}-run")]) == 0
        out = tmp_path / task
        assert (
            main(["export", "hf", str(tmp_path / f"{task}-run"), str(out), "--tokenizer", str(tmp_path / "gpt2")]) == 0
        )
        results[task] = pipeline(task, str(out))("naïve  text: 你好", **({"top_k": 3} if "class" in task else {}))
    ids = torch.tensor([[0, *tokenizer.encode("naïve  text: 你好"), 2]])
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path / "feature-extraction")(input_ids=ids).last_hidden_state
    assert (torch.tensor(results["feature-extraction"]) - expected).abs().max() < 5e-6
    scores = {score["label"]: score["score"] for score in results["text-classification"]}
    assert set(scores) == {"LABEL_0", "LABEL_1", "LABEL_2"} and abs(sum(scores.values()) - 1) < 1e-5


def test_pipelines(tmp_path: Path) -> None:
    """Classification of images and of recordings; speech recognition is an example of the document."""
    from transformers import pipeline

    from deploy.export.data2vec2.modeling import Data2Vec2ForAudioClassification

    save(imagenet(GOLDEN / "image" / "mini"), tmp_path / "imagenet.pt")
    assert main(["import", "fairseq", str(tmp_path / "imagenet.pt"), str(tmp_path / "classes")]) == 0
    assert main(["export", "hf", str(tmp_path / "classes"), str(tmp_path / "classes-hf")]) == 0
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=numpy.uint8))
    scores = pipeline("image-classification", str(tmp_path / "classes-hf"))(image, top_k=10)
    assert len(scores) == 10 and abs(sum(score["score"] for score in scores) - 1) < 1e-5

    audio = exported(GOLDEN / "audio" / "mini", tmp_path)
    new = Data2Vec2ForAudioClassification.from_pretrained(audio, num_labels=3)
    new.save_pretrained(tmp_path / "commands")
    (tmp_path / "commands" / "preprocessor_config.json").write_text((audio / "preprocessor_config.json").read_text())
    scores = pipeline("audio-classification", str(tmp_path / "commands"))(numpy.random.randn(8000))
    assert {score["label"] for score in scores} == {"LABEL_0", "LABEL_1", "LABEL_2"}


STRANGER = """
import importlib.util, json, sys
sys.path.append({site!r})
assert not any(importlib.util.find_spec(name) for name in ("deploy", "model", "pretrain", "data_pipelines"))
import numpy
from safetensors.torch import load_file, save_file
from transformers import AutoModel, pipeline
outputs = {{}}
for modality in ("image", "audio", "text"):
    model = AutoModel.from_pretrained(f"{folder}/{{modality}}/hf", trust_remote_code=True)
    output = model(**load_file(f"{folder}/{{modality}}.safetensors"))
    outputs[modality] = output.last_hidden_state.detach()
save_file(outputs, "{folder}/outputs.safetensors")
recognize = pipeline("automatic-speech-recognition", "{folder}/letters-hf", trust_remote_code=True)
print(json.dumps(recognize(numpy.load("{folder}/wave.npy"))))
"""


def linked_requirements(folder: Path, *names: str) -> Path:
    """A folder with links to some distributions and all that they require, as in an environment of their own."""
    folder.mkdir()
    seen: set[str] = set()
    remaining = list(names)
    while remaining:
        name = remaining.pop()
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        root = Path(str(found.locate_file("")))
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(root / top)
        wanted = [Requirement(text) for text in found.requires or []]
        remaining += [need.name for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    return folder


def test_exports_load_with_torch_and_transformers_alone(tmp_path: Path) -> None:
    """A process that knows these, safetensors and what they require; the same numbers, without a complaint."""
    expected = {}
    for modality in INPUTS:
        (tmp_path / modality).mkdir()
        _, tensors = golden(GOLDEN / modality / "mini")
        folder = exported(GOLDEN / modality / "mini", tmp_path / modality)
        save_file(batch_of(tensors, modality), tmp_path / f"{modality}.safetensors")
        from transformers import AutoModel

        with torch.no_grad():
            expected[modality] = AutoModel.from_pretrained(folder)(**batch_of(tensors, modality)).last_hidden_state
    save(ctc(GOLDEN / "audio" / "mini"), tmp_path / "letters.pt")
    assert main(["import", "fairseq", str(tmp_path / "letters.pt"), str(tmp_path / "letters")]) == 0
    assert main(["export", "hf", str(tmp_path / "letters"), str(tmp_path / "letters-hf")]) == 0
    numpy.save(tmp_path / "wave.npy", numpy.random.default_rng(0).standard_normal(8000, numpy.float32))
    site = linked_requirements(tmp_path / "site", "torch", "transformers", "safetensors")
    stranger = subprocess.run(
        [sys.executable, "-I", "-S", "-c", STRANGER.format(site=str(site), folder=tmp_path)],
        cwd="/",
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert stranger.returncode == 0, stranger.stderr
    for complaint in ("newly initialized", "not used", "missing", "unexpected", "not supported"):
        assert complaint not in stranger.stderr.lower(), stranger.stderr
    outputs = load_file(tmp_path / "outputs.safetensors")
    for modality, ours in expected.items():
        assert (outputs[modality] - ours).abs().max() < 5e-6, modality  # another process rounds convolutions anew
    text = json.loads(stranger.stdout.splitlines()[-1])["text"]
    assert text and set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' </s>unkpd<")


def one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("d2v: error: ") and not captured.out, captured
    return lines[0]


def test_bad_input_gives_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, cut, text = tmp_path / "good.pt", tmp_path / "cut.pt", tmp_path / "text.pt"
    lacking, foreign = tmp_path / "lacking.pt", tmp_path / "foreign.pt"
    whole = pretrained(GOLDEN / "image" / "mini")
    save(whole, good)
    cut.write_bytes(good.read_bytes()[:-5000])
    text.write_text("not a model")
    save(whole | {"model": {k: v for k, v in whole["model"].items() if k != "blocks.1.norm1.bias"}}, lacking)
    torch.save({"state_dict": {"weight": torch.ones(2)}}, foreign)
    assert main(["import", "fairseq", str(good), str(tmp_path / "run")]) == 0
    run, out, nowhere = str(tmp_path / "run"), str(tmp_path / "out"), str(tmp_path / "nowhere")
    before = {path.name for path in tmp_path.iterdir()}
    for file, where, expected in (
        (nowhere, out, "nowhere: no such file"),
        (cut, out, "cut.pt: cannot be read: not a file of torch.save, or cut short"),
        (text, out, "text.pt: cannot be read: not a file of torch.save"),
        (lacking, out, "lacking.pt: lacks blocks.1.norm1.bias"),
        (foreign, out, "foreign.pt: not a checkpoint of fairseq: it has no 'model'"),
        (tmp_path / "run", out, "run: no such file"),
        (good, run, f"{run}: exists and is not empty"),
        (good, "/proc/out", "/proc/out: cannot be written"),
    ):
        assert expected in one_line(capsys, ["import", "fairseq", str(file), where]), file
    for kind in ("hf", "fairseq", "onnx", "torch"):
        for checkpoint, where, options, expected in (
            (run, out, ["--modality", "audio"], "--modality: the checkpoint has no audio, only image"),
            (str(good), out, [], "good.pt: no checkpoint here"),
            (nowhere, out, [], "nowhere: no checkpoint here"),
            (run, str(good), [], "good.pt: exists"),
            (run, "/proc/out", [], "/proc/out: cannot be written"),
        ):
            assert expected in one_line(capsys, ["export", kind, checkpoint, where, *options]), (kind, expected)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_damaged_checkpoints_give_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(pretrained(GOLDEN / "image" / "mini"), tmp_path / "good.pt")
    Image.new("L", (30, 30)).save(tmp_path / "photo.png")
    assert main(["import", "fairseq", str(tmp_path / "good.pt"), str(tmp_path / "run")]) == 0
    run, before = str(tmp_path / "run"), {path.name for path in tmp_path.iterdir()}
    commands = [["export", kind, run, str(tmp_path / "out")] for kind in ("hf", "fairseq", "onnx", "torch")]
    commands.append(["embed", run, str(tmp_path / "photo.png"), "--out", str(tmp_path / "out.npz")])

    def all_say(expected: str) -> None:
        for arguments in commands:
            assert expected in one_line(capsys, arguments), arguments
        assert {path.name for path in tmp_path.iterdir()} == before

    step = tmp_path / "run" / "checkpoints" / "step-00000400"
    manifest, config, weights = step / "manifest.json", step / "config.yaml", step / "rank-00000.safetensors"
    content = manifest.read_text()
    described = json.loads(content)
    manifest.write_text(json.dumps(described | {"version": 99}))
    all_say("checkpoint format version 99")
    del described["shapes"]["encoder.blocks.1.norm1.bias"]
    manifest.write_text(json.dumps(described))
    all_say("encoder.blocks.1.norm1.bias does not fit the model of its config.yaml")
    manifest.write_text(content)
    settings = config.read_text()
    config.unlink()
    all_say("config.yaml: No such file or directory; is ")
    config.write_text(settings + "\nnew_field: 1\n")
    all_say("new_field")
    config.write_text(settings)
    os.truncate(weights, weights.stat().st_size // 2)
    all_say("rank-00000.safetensors: cannot be read")


def test_a_modeling_file_that_stands_alone(tmp_path: Path) -> None:
    """One file; what it imports is torch, transformers, and Python's own."""
    save(glue(GOLDEN / "text" / "mini"), tmp_path / "glue.pt")
    assert main(["import", "fairseq", str(tmp_path / "glue.pt"), str(tmp_path / "run")]) == 0
    assert main(["export", "hf", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    assert {path.name for path in (tmp_path / "hf").glob("*.py")} == {FILE_NAME}
    source = (tmp_path / "hf" / FILE_NAME).read_text(encoding="utf-8")
    roots = set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE))
    assert roots <= {"torch", "transformers", *sys.stdlib_module_names}
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForSequenceClassification" in card and "after 400 steps of fine-tuning" in card
