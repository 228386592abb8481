import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deploy.export.folder import new_file, new_folder
from pretrain.errors import RunError


@pytest.mark.parametrize("empty_exists", [False, True])
def test_folder_appears_whole(tmp_path: Path, empty_exists: bool) -> None:
    out = tmp_path / "deep" / "export"
    if empty_exists:
        out.mkdir(parents=True)
    with new_folder(out) as folder:
        (folder / "a").write_text("content")
        (folder / "a").chmod(0o600)
        assert not (out / "a").exists()
    assert (out / "a").read_text() == "content"
    assert (out.stat().st_mode & 0o777, (out / "a").stat().st_mode & 0o777) == (0o755, 0o644)
    assert list(out.parent.iterdir()) == [out]


def test_tree_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "run") as folder:
        (folder / "a" / "b").mkdir(parents=True, mode=0o700)
        (folder / "a" / "b" / "file").write_text("content")
        (folder / "a" / "b" / "file").chmod(0o600)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*")}
    assert modes == {"a": 0o755, "b": 0o755, "file": 0o644}


def test_folder_vanishes_on_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_folder(tmp_path / "export") as folder:
        (folder / "a").write_text("content")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_disk_that_is_full_is_named(tmp_path: Path) -> None:
    """A limit on the size of files stands for it; safetensors' error is no OSError."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        refused = pytest.raises(RunError, match="export: cannot be written: .*too large")
        with refused, new_folder(tmp_path / "export") as folder:
            save_file({"weight": torch.zeros(1000)}, folder / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_occupied_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for occupied in (tmp_path, tmp_path / "file"):
        with pytest.raises(RunError, match="exists and is not empty"), new_folder(occupied):
            raise AssertionError("must not be entered")
    assert (tmp_path / "file").read_text() == "mine"


def test_files_appear_whole(tmp_path: Path) -> None:
    """With what lies beside them, and readable for others."""
    out = tmp_path / "deep" / "model.onnx"
    with new_file(out) as path:
        path.write_text("graph")
        path.with_name("model.onnx.data").write_text("weights")
        path.chmod(0o600)
        assert not out.exists()
    assert {one.name: one.read_text() for one in out.parent.iterdir()} == {
        "model.onnx": "graph",
        "model.onnx.data": "weights",
    }
    assert out.stat().st_mode & 0o777 == 0o644


def test_files_vanish_on_error_and_replace_nothing(tmp_path: Path) -> None:
    (tmp_path / "b.data").write_text("mine")
    with pytest.raises(KeyError), new_file(tmp_path / "a") as path:
        path.write_text("content")
        raise KeyError
    with pytest.raises(RunError, match=r"b\.data: exists"), new_file(tmp_path / "b") as path:
        path.write_text("content")
        path.with_name("b.data").write_text("other")
    with pytest.raises(RunError, match=r"b\.data: exists"), new_file(tmp_path / "b.data"):
        raise AssertionError("must not be entered")
    with pytest.raises(RunError, match="c: exists"), new_file(tmp_path / "c") as path:
        path.write_text("content")
        path.with_name("c.data").write_text("other")
        (tmp_path / "c").write_text("mine")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"b.data": "mine", "c": "mine"}
