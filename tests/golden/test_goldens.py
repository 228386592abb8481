"""Goldens are law: the committed case always, all of shared/golden where it lies beside the repository."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.golden import check

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "golden"


def results(directory: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict]]:
    status = check.main([str(directory)])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_committed_case(capsys: pytest.CaptureFixture[str]) -> None:
    status, (case,) = results(HERE, capsys)
    assert status == 0, case["beyond"]
    assert case["case"] == "image/mini"
    assert {"targets", "pred_masked", "student.encoder_out", "loss", "loss.cls", "features.x"} <= case[
        "difference"
    ].keys()


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/golden is not beside the repository")
def test_shared_cases(capsys: pytest.CaptureFixture[str]) -> None:
    status, cases = results(SHARED, capsys)
    assert status == 0, [case["beyond"] for case in cases if not case.get("ok", True)]
    assert {"image/mini", "image/base_tiny"} <= {case["case"] for case in cases if "skipped" not in case}


@pytest.mark.parametrize(
    ("tensor", "quantity"),
    [
        ("param.blocks.1.mlp.fc2.weight", "student.encoder_out"),
        ("targets", "targets"),
        ("grad.modality_encoders.IMAGE.decoder.blocks.0.0.weight", "gradient.decoders.image.layers.0.weight"),
        ("ema_after1.blocks.0.norm1.bias", "ema_after1.encoder.blocks.0.norm1.bias"),
    ],
)
def test_check_sees_a_changed_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tensor: str, quantity: str
) -> None:
    (tmp_path / "image").mkdir()
    shutil.copy(HERE / "image" / "mini.json", tmp_path / "image" / "bent.json")
    tensors = load_file(HERE / "image" / "mini.safetensors")
    tensors[tensor] = tensors[tensor] * (1 + 1e-3)
    save_file(tensors, tmp_path / "image" / "bent.safetensors")
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
