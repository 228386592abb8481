"""Reading checkpoints by parameter name, whatever layout wrote them: no GPU, no process group, no DeepSpeed."""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from pretrain.checkpoint.manifest import Manifest, Part
from pretrain.errors import RunError

_MAX_OPEN_FILES = 512
"""Below the usual limit of 1024 open files per process; a checkpoint has as many files as there were ranks."""


class FragmentReader:
    """Any range of any parameter of one checkpoint, assembled from the files that hold parts of it.

    Files are opened when first needed; the one that was not needed for longest is closed when there are too many.
    """

    def __init__(self, checkpoint: Path) -> None:
        """Open ``checkpoint`` (one step-... directory); raises RunError if its manifest is unusable."""
        self.checkpoint = checkpoint
        self.manifest = Manifest.read(checkpoint)
        self._holders: dict[str, dict[Part | None, list[tuple[int, int, str]]]] = {}
        for record in self.manifest.files:
            for key, (start, stop) in record.ranges.items():
                part = record.parts.get(_parameter(key))
                self._holders.setdefault(key, {}).setdefault(part, []).append((start, stop, record.name))
        self._open: OrderedDict[str, safe_open] = OrderedDict()
        self._whole: tuple[str, Tensor] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._holders

    def read(self, key: str, start: int, stop: int, part: Part | None = None) -> Tensor:
        """Elements [start, stop) of ``KIND/PARAMETER``, flattened, as a 1-D fp32 tensor.

        Args:
            key: what to read.
            start: first element.
            stop: one beyond the last.
            part: of the parameter, in which the elements are counted; None for the whole.
        Raises:
            RunError: if the files do not hold all of them, or are damaged.
        """
        held = self._holders.get(key, {})
        if part in held or not held:
            return self._assemble(key, part, start, stop)
        whole = self.whole(key)
        if part is not None:
            dim, first, last = part
            whole = whole.narrow(dim, first, last - first)
        return whole.reshape(-1)[start:stop]

    def whole(self, key: str) -> Tensor:
        """A whole parameter, put together from its parts; the last one is remembered.

        Raises:
            RunError: as ``read``.
        """
        if self._whole is None or self._whole[0] != key:
            shape = self.manifest.shapes[_parameter(key)]
            held = self._holders.get(key, {})
            if None in held or not held:
                value = self._assemble(key, None, 0, math.prod(shape)).view(shape)
            else:
                value = torch.full(shape, torch.nan)  # a missing part must not pass for zeros
                for part in held:
                    assert part is not None
                    dim, first, last = part
                    piece = value.narrow(dim, first, last - first)
                    piece.copy_(self._assemble(key, part, 0, piece.numel()).view(piece.shape))
                self._check_cover(key, shape)
            self._whole = key, value
        return self._whole[1]

    def _check_cover(self, key: str, shape: tuple[int, ...]) -> None:
        parts = sorted(part for part in self._holders[key] if part is not None)
        ends = [0, *(last for _, _, last in parts)]
        if [first for _, first, _ in parts] != ends[:-1] or ends[-1] != shape[parts[0][0]]:
            raise RunError(f"{self.checkpoint}: the parts of {key} do not make up its whole of {shape}")

    def _assemble(self, key: str, part: Part | None, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of one part, or of an uncut parameter."""
        result, missing = torch.empty(stop - start), stop - start
        for first, last, name in self._holders.get(key, {}).get(part, []):
            low, high = max(start, first), min(stop, last)
            if low < high:
                result[low - start : high - start] = self._slice(name, key, low - first, high - first)
                missing -= high - low
        if missing:
            raise RunError(f"{self.checkpoint}: {missing} elements of {key} [{start}:{stop}] are missing")
        return result

    def _slice(self, name: str, key: str, start: int, stop: int) -> Tensor:
        path = self.checkpoint / name
        try:
            return self._file(name, path).get_slice(key)[start:stop]
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
        except Exception as error:  # safetensors raises its own SafetensorError, not an OSError or ValueError
            raise RunError(f"{path}: cannot be read ({error}); use an earlier checkpoint") from error

    def _file(self, name: str, path: Path) -> safe_open:
        if name not in self._open:
            if len(self._open) == _MAX_OPEN_FILES:
                self._open.popitem(last=False)  # closes it, for nothing else holds it
            path.open("rb").close()  # safetensors says of whatever keeps it from opening a file that there is none
            # not mmap, whose pages would count as this process's memory
            self._open[name] = safe_open(str(path), framework="pt", backend="pread")
        self._open.move_to_end(name)
        return self._open[name]


def read_weights(checkpoint: Path, source: Literal["student", "teacher"]) -> dict[str, Tensor]:
    """Whole fp32 parameters by name; the teacher's lack the decoders.

    Raises:
        RunError: if the checkpoint is incomplete or damaged.
    """
    reader = FragmentReader(checkpoint)
    weights = {
        name: reader.whole(f"{source}/{name}")
        for name in reader.manifest.shapes
        if source == "student" or f"{source}/{name}" in reader
    }
    if not weights:
        raise RunError(f"{checkpoint}: holds no {source}")
    return weights


def _parameter(key: str) -> str:
    """PARAMETER of ``KIND/PARAMETER``."""
    return key.partition("/")[2]
