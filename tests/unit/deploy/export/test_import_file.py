"""Reading files of ``torch.save``: nothing in them runs, and what is not weights becomes plain values."""

import argparse
import collections
import enum
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.export.fairseq_file import read_file
from pretrain.errors import RunError
from tests.unit.deploy.export.fairseq_files import GOLDEN, SYMBOLS, content, pretrained, save

MINI = GOLDEN / "image" / "mini"


class Runs:
    """Unpickling calls ``function(*arguments)``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("place", ["model", "cfg", "extra_state", "tensor"])
@pytest.mark.parametrize(
    ("function", "named"),
    [("os.system", "posix.system"), ("builtins.exec", "exec"), ("subprocess.Popen", "subprocess.Popen")],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_malicious_pickle_runs_nothing_and_is_named(
    tmp_path: Path, place: str, function: str, named: str, is_zip: bool
) -> None:
    module, name = function.rsplit(".", 1)
    mark = tmp_path / "ran"
    argument = f"open({str(mark)!r}, 'w')" if name == "exec" else f"touch {mark}"
    evil = Runs(getattr(__import__(module), name), argument)
    checkpoint = pretrained(MINI)
    if place == "tensor":
        checkpoint["model"]["blocks.0.norm1.bias"] = evil
    else:
        checkpoint[place] = evil
    path = tmp_path / "evil.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(RunError) as error:
        read_file(path)
    assert named in str(error.value) and "refused" in str(error.value) and "\n" not in str(error.value)
    assert not mark.exists()


def module_of(monkeypatch: pytest.MonkeyPatch, name: str, *members: type) -> None:
    """Pretend that ``members`` are of a module that is not installed."""
    for depth in range(1, name.count(".") + 2):
        parent = ".".join(name.split(".")[:depth])
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    for member in members:
        member.__module__, member.__qualname__ = name, member.__name__
        setattr(sys.modules[name], member.__name__, member)


class DictConfig:
    """Pickles as omegaconf's does: nodes below ``_content``, each knowing its parent."""

    def __init__(self, values: dict[str, Any], parent: Any = None) -> None:
        cache = collections.defaultdict(dict, {"env": {"PWD": "/home"}})
        self.__dict__["_metadata"] = {"object_type": dict, "flags": {}, "resolver_cache": cache}
        self.__dict__["_parent"] = parent
        nodes = {name: DictConfig(v, self) if isinstance(v, dict) else AnyNode(v, self) for name, v in values.items()}
        self.__dict__["_content"] = nodes

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("ran code of the file")


class AnyNode:
    def __init__(self, value: Any, parent: Any) -> None:
        self._val, self._parent = value, parent


class Modality(enum.Enum):
    AUDIO = enum.auto()
    IMAGE = enum.auto()


class Dictionary:
    def __init__(self) -> None:
        self.symbols, self.indices, self.count = list(SYMBOLS), {s: i for i, s in enumerate(SYMBOLS)}, []


@pytest.mark.parametrize("is_zip", [True, False])
def test_objects_of_other_libraries_become_plain_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool
) -> None:
    """omegaconf with interpolations, an enum, a dictionary, a namespace: as older fairseq and torch wrote them."""
    module_of(monkeypatch, "omegaconf.dictconfig", DictConfig)
    module_of(monkeypatch, "omegaconf.nodes", AnyNode)
    module_of(monkeypatch, "examples.data2vec.data.modality", Modality)
    module_of(monkeypatch, "fairseq.data.dictionary", Dictionary)
    values = {
        "common": {"seed": 7},
        "optimization": {"max_update": 400, "lr": [0.5]},
        "model": {
            "depth": 2,
            "max_update": "${optimization.max_update}",
            "type": Modality.IMAGE,
            "modalities": {"image": {"model_depth": "${model.depth}", "decoder": None}},
        },
    }
    state = {"target_dictionary": Dictionary()}
    file = content(DictConfig(values), {"a": torch.ones(2)}, state) | {"args": argparse.Namespace(arch="x")}
    path = tmp_path / "old.pt"
    torch.save(file, path, _use_new_zipfile_serialization=is_zip)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("omegaconf", "fairseq", "examples")]:
        monkeypatch.delitem(sys.modules, name)
    found = read_file(path)
    assert found.cfg == {
        "common": {"seed": 7},
        "optimization": {"max_update": 400, "lr": [0.5]},
        "model": {
            "depth": 2,
            "max_update": 400,
            "type": 2,
            "modalities": {"image": {"model_depth": 2, "decoder": None}},
        },
    }
    assert found.symbols == tuple(SYMBOLS)
    assert (found.num_updates, list(found.student), found.teacher) == (400, ["a"], None)
    assert torch.equal(found.student["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": None}, "it has no 'model'"),
        ({"cfg": None}, "'cfg' lacks 'model'"),
        ({"cfg": None, "args": {"arch": "wav2vec2"}}, "of a time before data2vec 2.0"),
        ({"optimizer_history": 5}, "what lies beside the tensors"),
        ({"model": {"blocks.0.norm1.weight": 5}}, "'blocks.0.norm1.weight' in 'model' is not a tensor"),
        ({"model": {"_ema": 5}}, "'_ema' in 'model' holds no tensors by name"),
    ],
    ids=str,
)
def test_files_without_what_is_needed(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = save(pretrained(MINI) | change, tmp_path / "bad.pt")
    with pytest.raises(RunError) as error:
        read_file(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)


@pytest.mark.parametrize("name", ["_ema", "w2v_encoder.w2v_model._ema"])
@pytest.mark.parametrize("average", [{}, {"blocks.0.norm1.weight": torch.ones(2)}], ids=["empty", "full"])
def test_averages_that_are_empty_or_of_a_model_inside_another(tmp_path: Path, name: str, average: Any) -> None:
    """An empty one is none, and that of a wrapped model is not the file's."""
    found = read_file(save(content({"model": {}}, {"a": torch.ones(2), name: average}), tmp_path / "model.pt"))
    assert list(found.student) == ["a"]
    assert (found.teacher is not None) == (name == "_ema" and len(average) > 0)


def test_configuration_that_names_itself_ends(tmp_path: Path) -> None:
    cfg = {"model": {"a": "${model}", "b": "${model.b}"}}
    with pytest.raises(RunError, match="what lies beside the tensors"):
        read_file(save(content(cfg, {"x": torch.ones(1)}), tmp_path / "loop.pt"))


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "cut-old", "pickle", "folder", "missing"])
def test_what_is_no_file_of_torch(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.pt"
    if kind.startswith("cut"):
        torch.save(pretrained(MINI), path, _use_new_zipfile_serialization=kind == "cut")
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": {}}))
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text("not a model" if kind == "text" else "")
    with pytest.raises(RunError) as error:
        read_file(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert "no such file" in str(error.value) or "not a file of torch.save" in str(error.value)
