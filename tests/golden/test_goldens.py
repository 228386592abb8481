"""Goldens are law: the committed cases always, all of shared/golden where it lies beside the repository."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.distributed.launch import run_ranks
from tests.golden import check

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "golden"


def results(directory: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict]]:
    status = check.main([str(directory)])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_committed_cases(capsys: pytest.CaptureFixture[str]) -> None:
    status, cases = results(HERE, capsys)
    assert status == 0, [case["beyond"] for case in cases]
    assert [case["case"] for case in cases] == ["audio/mini", "image/mini", "text/mini"]
    everywhere = {"targets", "pred_masked", "student.encoder_out", "loss", "gradient_norm", "features.x"}
    assert all(everywhere <= case["difference"].keys() for case in cases)
    assert {"loss.cls", "loss.regression"} <= cases[1]["difference"].keys()
    assert "gradient.frontends.audio.alibi_scale" in cases[0]["difference"]
    assert "ema_after1.encoder.blocks.0.norm1.bias" in cases[2]["difference"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/golden is not beside the repository")
def test_shared_cases(capsys: pytest.CaptureFixture[str]) -> None:
    status, cases = results(SHARED, capsys)
    assert status == 0, [case["beyond"] for case in cases if not case["ok"]]
    modalities = ("audio", "image", "text")
    assert {f"{name}/{size}" for name in modalities for size in ("mini", "base_tiny")} <= {
        case["case"] for case in cases
    }


@pytest.fixture(scope="module")
def through_layouts() -> dict[tuple[str, str], dict]:
    """Results of tests.golden.layouts by case and layout; of shared/golden, which has the committed cases too."""
    directory = SHARED if SHARED.is_dir() else HERE
    printed, _ = run_ranks("tests.golden.layouts", [str(directory)], 2)
    results = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return {(result["case"], result["layout"]): result for result in results}


@pytest.mark.parametrize("layout", ["tp2", "rows", "pp2"])
@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_layouts_give_the_references_vectors(
    through_layouts: dict[tuple[str, str], dict], modality: str, layout: str
) -> None:
    """Outputs, losses and every gradient, through DeepSpeed, megatron's linears and its schedule."""
    sizes = ["mini", "base_tiny"] if SHARED.is_dir() else ["mini"]
    assert [through_layouts[f"{modality}/{size}", layout]["beyond"] for size in sizes] == [[]] * len(sizes)


AUDIO, TEXT = "modality_encoders.AUDIO", "modality_encoders.TEXT"


@pytest.mark.parametrize(
    ("modality", "tensor", "quantity"),
    [
        ("image", "param.blocks.1.mlp.fc2.weight", "student.encoder_out"),
        ("image", "targets", "targets"),
        (
            "image",
            "grad.modality_encoders.IMAGE.decoder.blocks.0.0.weight",
            "gradient.decoders.image.layers.0.weight",
        ),
        ("image", "ema_after1.blocks.0.norm1.bias", "ema_after1.encoder.blocks.0.norm1.bias"),
        ("audio", f"param.{AUDIO}.local_encoder.conv_layers.6.2.1.bias", "pred_masked"),
        ("audio", f"ema.{AUDIO}.relative_positional_encoder.1.0.bias", "targets"),
        ("audio", f"param.{AUDIO}.alibi_scale", "student.encoder_out"),
        ("text", f"param.{TEXT}.local_encoder.embed_tokens.weight", "features.x"),
        ("text", "ema.0.attn.proj.weight", "targets"),
        ("text", f"param.{TEXT}.decoder.proj.2.bias", "pred_masked"),
    ],
)
def test_check_sees_a_changed_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], modality: str, tensor: str, quantity: str
) -> None:
    (tmp_path / modality).mkdir()
    shutil.copy(HERE / modality / "mini.json", tmp_path / modality / "bent.json")
    tensors = load_file(HERE / modality / "mini.safetensors")
    tensors[tensor] = tensors[tensor] * (1 + 1e-3)
    save_file(tensors, tmp_path / modality / "bent.safetensors")
    status, (case,) = results(tmp_path, capsys)
    assert status == 1
    assert quantity in case["beyond"]


def test_nothing_to_check_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(tmp_path)]) == 1


def test_case_that_cannot_be_built_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "image").mkdir()
    for name in ("bad", "good"):
        for suffix in (".json", ".safetensors"):
            shutil.copy((HERE / "image" / "mini").with_suffix(suffix), (tmp_path / "image" / name).with_suffix(suffix))
    bad = json.loads((tmp_path / "image" / "bad.json").read_text(encoding="utf-8"))
    bad["config_resolved"]["model"]["layer_norm_first"] = True
    (tmp_path / "image" / "bad.json").write_text(json.dumps(bad), encoding="utf-8")
    status, cases = results(tmp_path, capsys)
    assert status == 1
    assert [case["ok"] for case in cases] == [False, True]
    assert "layer_norm_first" in cases[0]["error"]


def test_folder_of_one_modality_is_checked_by_any_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HERE / "image")
    status, (case,) = results(Path("."), capsys)
    assert (status, case["case"]) == (0, "image/mini")
