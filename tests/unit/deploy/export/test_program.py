"""Exported programs compute what our own model does, by the libraries that users run them with."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deploy.cli import main
from deploy.export import package
from deploy.export.encoder import load_encoder
from deploy.export.heads import write_head
from deploy.export.inference import Inference, expected
from deploy.export.program import difference, fp32_rounding
from deploy.export.trained import Model
from model.sections import AlibiConfig
from pretrain.checkpoint.store import locate
from pretrain.evaluate.encoder import Source
from pretrain.recipes.registry import RECIPES
from tests.unit.deploy.export.checkpoints import write_checkpoint
from tests.unit.deploy.export.encoders import audio, head_of, image, random_encoder, text
from tests.unit.deploy.export.encoders import batch as small_batch
from tests.unit.deploy.export.fairseq_files import GOLDEN, glue, save

MODELS = {
    "image": image(image_size=28, patch_size=7, in_channels=1, alibi=AlibiConfig()),
    "audio": audio(alibi=AlibiConfig(per_layer=True), num_extra_tokens=1),
    "text": text(max_positions=64, prenet_depth=1, alibi=AlibiConfig()),
}
ONE = torch.tensor([1])
LENGTHS = {"audio": [1000, 333, 640], "text": [17, 1, 6]}
SUFFIX = {"onnx": "onnx", "torch": "pt2"}
TOLERANCES = {"onnx": 1e-5, "torch": 1e-6}
Program = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for modality, model in MODELS.items():
        write_checkpoint(folder / modality, dataclasses.replace(RECIPES[f"{modality}-tiny"](), model=model))
    return {modality: folder / modality for modality in MODELS}


def batch(modality: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """Named inputs of another size than any that an export looks at, and our own padding."""
    generator = torch.Generator().manual_seed(9)
    if modality == "image":
        return {"pixel_values": torch.randn(3, 1, 28, 28, generator=generator)}, None
    lengths = torch.tensor(LENGTHS[modality])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    if modality == "text":
        rows = [torch.randint(4, 50, (int(length),), generator=generator) for length in lengths]
        return {"input_ids": pad_sequence(rows, True, 1), "attention_mask": mask.long()}, ~mask
    rows = [torch.randn(int(length), generator=generator) for length in lengths]
    model = MODELS["audio"].audio
    assert model is not None
    frames = torch.tensor([model.num_frames(int(length)) for length in lengths])
    padding = torch.arange(int(frames.max())) >= frames[:, None]
    return {"input_values": pad_sequence(rows, True), "attention_mask": mask.long()}, padding


def opened(path: Path) -> Program:
    """As in docs/converting.md: nothing of ours is needed."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda given: module(**given)
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda given: dict(
        zip(names, map(torch.from_numpy, session.run(names, {n: t.numpy() for n, t in given.items()})), strict=True)
    )


@torch.no_grad()
def ours(run: Path, modality: str, source: Source, rows: int = 3) -> tuple[Tensor, Tensor | None]:
    """Features of the first rows, and their padding."""
    given, padding = batch(modality)
    encoder = load_encoder(locate(run), MODELS[modality], source)
    padding = None if padding is None else padding[:rows]
    return encoder.features(next(iter(given.values()))[:rows], modality=modality, padding=padding), padding


def export(kind: str, run: Path, out: Path, *options: str) -> int:
    return main(["export", kind, str(run), str(out), *options])


@pytest.mark.parametrize("kind", SUFFIX)
@pytest.mark.parametrize("modality", MODELS)
def test_program_equals_our_model(
    runs: dict[str, Path], tmp_path: Path, kind: str, modality: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a batch of another size and other lengths with padding, and on one sample."""
    source: Source = "teacher" if modality == "text" else "student"
    out = tmp_path / f"encoder.{SUFFIX[kind]}"
    assert export(kind, runs[modality], out, "--source", source) == 0
    printed = float(capsys.readouterr().out.split("largest difference to our model: ")[1].split(" on ")[0])
    assert printed <= TOLERANCES[kind]
    assert list(tmp_path.iterdir()) == [out] and out.stat().st_mode & 0o777 == 0o644
    program, (given, _) = opened(out), batch(modality)
    output = program(given)
    features, padding = ours(runs[modality], modality, source)
    assert (output["last_hidden_state"] - features).abs().max() <= TOLERANCES[kind]
    (side,) = MODELS[modality].modalities.values()
    tokens = features[:, side.num_extra_tokens :]
    if padding is None:
        pooled = tokens.mean(dim=1)
    else:
        pooled = torch.stack([row[~gone].mean(dim=0) for row, gone in zip(tokens, padding, strict=True)])
        assert torch.equal(output["output_mask"][:, side.num_extra_tokens :], (~padding).long())
    assert (output["pooler_output"] - pooled).abs().max() <= TOLERANCES[kind]
    one = program({name: tensor[:1] for name, tensor in given.items()})
    if modality == "text" and kind == "torch":
        longer = {name: tensor[:2, :1].expand(2, 65) for name, tensor in given.items()}
        with pytest.raises(AssertionError, match="64"):  # the model's positions
            program(longer)
    features, _ = ours(runs[modality], modality, source, rows=1)
    assert (one["last_hidden_state"] - features).abs().max() <= TOLERANCES[kind]


def test_a_head_loses_nothing_in_torch_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even by where in memory its weights lie: products round by alignment."""
    save(glue(GOLDEN / "text" / "mini"), tmp_path / "glue.pt")
    assert main(["import", "fairseq", str(tmp_path / "glue.pt"), str(tmp_path / "run")]) == 0
    assert export("torch", tmp_path / "run", tmp_path / "glue.pt2") == 0
    assert "largest difference to our model: 0.0 on " in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "dtype"), [("onnx", "bf16"), ("onnx", "fp16"), ("torch", "bf16")])
def test_smaller_types(runs: dict[str, Path], tmp_path: Path, kind: str, dtype: str) -> None:
    """Weights are stored in half the bytes; outputs move by the rounding and not more, and are fp32."""
    out = tmp_path / f"encoder.{SUFFIX[kind]}"
    assert export(kind, runs["text"], out, "--dtype", dtype) == 0
    features, _ = ours(runs["text"], "text", "student")
    output = opened(out)(batch("text")[0])["last_hidden_state"]
    assert output.dtype == torch.float32
    assert 1e-5 < (output - features).abs().max() < (0.1 if dtype == "bf16" else 0.01)
    if kind == "onnx":
        tensors = onnx.load(out).graph.initializer
        largest = max(tensors, key=lambda tensor: numpy.prod(tensor.dims))
        assert onnx.TensorProto.DataType.Name(largest.data_type) == {"bf16": "BFLOAT16", "fp16": "FLOAT16"}[dtype]
    else:
        weights = torch.export.load(out).state_dict.values()
        assert {weight.dtype for weight in weights} == {torch.bfloat16}


def test_large_weights_lie_beside_the_onnx_file(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model beyond torch's limit; both files stay together wherever they move."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    out, moved = tmp_path / "huge" / "model.onnx", tmp_path / "moved"
    assert export("onnx", runs["image"], out) == 0
    sizes = {path.name: path.stat().st_size for path in out.parent.iterdir()}
    encoder = load_encoder(locate(runs["image"]), MODELS["image"], "student")
    weights = sum(parameter.numel() for parameter in encoder.parameters() if parameter.dim() > 1)
    assert set(sizes) == {"model.onnx", "model.onnx.data"} and sizes["model.onnx.data"] >= 4 * weights
    out.parent.rename(moved)
    features, _ = ours(runs["image"], "image", "student")
    output = opened(moved / "model.onnx")(batch("image")[0])["last_hidden_state"]
    assert (output - features).abs().max() <= TOLERANCES["onnx"]


def test_what_differs_too_much_is_not_written(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder.onnx"
    assert export("onnx", runs["image"], out, "--tolerance", "1e-9") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not written: largest difference to our model: " in line and "more than 1e-09 (--tolerance)" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "lost"), [(torch.float16, 0.1), (torch.bfloat16, 1.0), (torch.float32, 1e-5)])
@torch.no_grad()
def test_padded_frames_of_letters_are_no_difference(dtype: torch.dtype, lost: float) -> None:
    """Their blanks are of the size of the type; real frames, and padded ones that are no blank, count."""
    head, weights = head_of("ctc")
    model, inputs = Model(random_encoder(audio()), head, weights), small_batch(audio())
    exact, found = [expected(model, inputs)], [Inference(model, dtype)(**inputs.given("audio"))]
    assert difference([inputs], exact, found) < lost
    assert inputs.padding is not None and (found[0]["logits"][inputs.padding].amin() < -60_000).all()
    wrong = [{"logits": found[0]["logits"] + 5.0}]
    assert 4.99 < difference([inputs], exact, wrong) < 5.0 + lost
    letter = [{"logits": found[0]["logits"].masked_fill(inputs.padding.unsqueeze(-1), 0).index_fill(2, ONE, 1.0)}]
    assert difference([inputs], exact, letter) == torch.inf
    strange = [{"other": torch.full((1,), torch.nan)} | one for one in (exact[0], found[0])]
    assert not difference([inputs], strange[:1], strange[1:]) <= 1e9


def test_wrong_letters_are_not_written_in_half_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose logits are 5 off: the rounding that is allowed is that of real frames."""
    config = dataclasses.replace(RECIPES["audio-tiny"](), model=MODELS["audio"])
    write_checkpoint(tmp_path / "run", config)
    write_head(locate(tmp_path / "run"), *head_of("ctc"))
    assert export("torch", tmp_path / "run", tmp_path / "good.pt2", "--dtype", "fp16") == 0
    assert float(capsys.readouterr().out.rsplit("moves outputs by up to ", 1)[1].split()[0].rstrip(");")) < 0.1
    read = package.FORMAT.read

    def off(path: Path) -> Program:
        run = read(path)
        return lambda given: {name: output + 5.0 for name, output in run(given).items()}

    monkeypatch.setattr(package, "FORMAT", package.FORMAT._replace(read=off, other_kernels=True))
    assert export("torch", tmp_path / "run", tmp_path / "bad.pt2", "--dtype", "fp16") == 2
    assert "not written: largest difference to our model: 5.0" in capsys.readouterr().err


def test_what_fp32_loses() -> None:
    """Of padded frames only the blank counts, whose size is that of the type."""
    head, weights = head_of("ctc")
    model, inputs = Model(random_encoder(audio()), head, weights), small_batch(audio())
    ours = [expected(model, inputs)]
    assert (ours[0]["logits"] < -1e30).any()
    lost = fp32_rounding(model, [inputs], ours)
    assert 1e-7 < lost < 1e-4
    ours[0]["logits"][0, 0, 0] += 0.5
    assert 0.499 < fp32_rounding(model, [inputs], ours) < 0.501
