"""Files of fairseq's ``torch.save``, read without running anything that they hold.

torch's own unpickler for weights builds tensors and plain containers. What fairseq puts beside them (configurations of
omegaconf, argparse namespaces, dictionaries, enums) is built as ``_Stub``, which keeps what it is given and does
nothing. A file that names any other function or class is refused.
"""

import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from pretrain.errors import RunError

_STUBBED = re.compile(
    r"(omegaconf|fairseq|examples|hydra|argparse|enum|typing|numpy|pathlib)(\.\w+)+"
    r"|collections\.defaultdict|_operator\.getitem|_codecs\.encode|copy_reg\._reconstructor|copyreg\._reconstructor"
    r"|(builtins|__builtin__)\.(object|int|float|bool|str|bytes|dict|list|tuple|set|type)"
)
"""Names whose place a stub may take."""
_DEFAULTDICT = "collections.defaultdict"
_PICKLES_BEFORE_STORAGES = 5
"""Of torch's format before 1.6, which is no archive: mark, version, sizes of types, the content, keys of storages."""
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


class FairseqFile(NamedTuple):
    """What of a file can be used."""

    cfg: dict[str, Any]
    """The configuration of the training, plain values only."""
    student: dict[str, Tensor]
    """``model`` as stored, without ``_ema`` and without that of a model inside another, which fine-tuning leaves."""
    teacher: dict[str, Tensor] | None
    """``_ema``, if there is one that holds anything."""
    num_updates: int
    """Optimizer steps made."""
    symbols: tuple[str, ...]
    """Of the dictionary of targets, if the task kept it (CTC)."""


class _Stub:
    """Stands for any object: keeps arguments and state, runs nothing."""

    def __new__(cls, *arguments: Any) -> "_Stub":
        stub = super().__new__(cls)
        stub.arguments, stub.state = arguments, {}
        return stub

    def __init__(self, *arguments: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _empty(*arguments: Any) -> dict[Any, Any]:
    """Stands for a defaultdict, whose items come after it: torch fills in plain dictionaries only."""
    return {}


def read_file(path: Path) -> FairseqFile:
    """Read a file of fairseq; its tensors stay on disk until they are used.

    Raises:
        RunError: if it is not one, is cut short, or names code.
    """
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise RunError(f"{path}: not a checkpoint of fairseq: it has no 'model'")
    student = dict(content["model"])
    averages = {name: student.pop(name) for name in list(student) if str(name).rpartition(".")[2] == "_ema"}
    wrong = [name for name, value in averages.items() if not isinstance(value, dict)]
    if wrong:
        raise RunError(f"{path}: {wrong[0]!r} in 'model' holds no tensors by name")
    teacher = averages.get("_ema") or None
    wrong = [name for name, value in {**student, **(teacher or {})}.items() if not isinstance(value, Tensor)]
    if wrong:
        raise RunError(f"{path}: {wrong[0]!r} in 'model' is not a tensor")
    try:
        cfg, num_updates, symbols = _described(content)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise RunError(f"{path}: what lies beside the tensors is not what fairseq writes ({error})") from error
    if not isinstance(cfg.get("model"), dict):
        older = " (its options are 'args', of a time before data2vec 2.0)" if content.get("args") is not None else ""
        raise RunError(f"{path}: has no configuration: 'cfg' lacks 'model'{older}")
    return FairseqFile(cfg, student, teacher, num_updates, symbols)


def _described(content: dict[str, Any]) -> tuple[dict[str, Any], int, tuple[str, ...]]:
    """Configuration, steps made, symbols of the targets."""
    history = plain(content.get("optimizer_history")) or [{}]
    dictionary = (plain(content.get("task_state")) or {}).get("target_dictionary") or {}
    symbols = tuple(map(str, dictionary.get("symbols") or ()))
    return resolved(plain(content.get("cfg")) or {}), int(history[-1].get("num_updates") or 0), symbols


def _load(path: Path) -> Any:
    if not path.is_file():
        raise RunError(f"{path}: no such file")
    is_zip = zipfile.is_zipfile(path)
    names = _globals(path, is_zip)
    refused = sorted(name for name in names if not _STUBBED.fullmatch(name))
    if refused:
        raise _refused(path, refused[0])
    stubs: list[Any] = [(_empty if name == _DEFAULTDICT else type(name, (_Stub,), {}), name) for name in names]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stubs):
            warnings.simplefilter("ignore")  # about old or foreign pickles; those that matter are errors
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch, pickle and zipfile have many kinds
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise _refused(path, found[1]) from error
        raise _unreadable(path, error) from error


def _globals(path: Path, is_zip: bool) -> list[str]:
    """Functions and classes that a file names and torch does not know to be harmless; nothing is unpickled.

    Of the older format only those that a stub may stand for: at others torch's unpickler stops by itself.
    """
    try:
        if is_zip:
            return torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with path.open("rb") as stream:
            named = [_named(stream) for _ in range(_PICKLES_BEFORE_STORAGES)]
    except Exception as error:
        raise _unreadable(path, error) from error
    return [name for name in set().union(*named) if _STUBBED.fullmatch(name)]


def _named(stream: IO[bytes]) -> set[str]:
    """What one pickle names, by the names of Python 3, as torch goes by; the stream then stands behind it."""
    names = set()
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            names.add(f"{module}.{name}")
    return names


def _refused(path: Path, dotted: str) -> RunError:
    module, _, name = dotted.rpartition(".")
    today = IMPORT_MAPPING.get(module, module) or "builtins"  # pickle writes the names that modules had in Python 2
    return RunError(f"{path}: refused: it would run {today}.{name}, which no checkpoint of fairseq needs")


def _unreadable(path: Path, error: Exception) -> RunError:
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    if "weights_only" in reason:  # torch advises to run what is in the file
        reason = "torch finds no tensors in it"
    return RunError(f"{path}: cannot be read: not a file of torch.save, or cut short ({reason})")


def plain(value: Any) -> Any:
    """A value with all stubs replaced by what they kept: containers of omegaconf by their content."""
    if isinstance(value, _Stub):
        state = value.state
        if isinstance(state, tuple):  # state of an object with slots
            state = next((part for part in state if isinstance(part, dict)), {})
        if isinstance(state, dict) and "_content" in state:
            return plain(state["_content"])
        if isinstance(state, dict) and "_val" in state:
            return plain(state["_val"])
        if state:
            return plain(state)
        return plain(value.arguments[0]) if len(value.arguments) == 1 else None
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) else None


def resolved(cfg: dict[str, Any]) -> dict[str, Any]:
    """A configuration with interpolations (``${optimization.max_update}``) replaced by the values they name."""

    def look_up(dotted: str) -> Any:
        value: Any = cfg
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolve(item) for key, item in value.items()}
        if isinstance(value, list):
            return [resolve(item) for item in value]
        whole = _INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
        return resolve(look_up(whole[1])) if whole else value

    return {key: resolve(item) for key, item in cfg.items()}
