"""Reading checkpoints by parameter name, whatever layout wrote them: no GPU, no process group, no DeepSpeed."""

import math
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from pretrain.checkpoint.manifest import Manifest
from pretrain.config import RunConfig, from_yaml
from pretrain.errors import RunError


class FragmentReader:
    """Any range of any parameter of one checkpoint, assembled from the files that hold parts of it."""

    def __init__(self, checkpoint: Path) -> None:
        """Open ``checkpoint`` (one step-... directory); raises RunError if its manifest is unusable."""
        self.checkpoint = checkpoint
        self.manifest = Manifest.read(checkpoint)
        self._holders: dict[str, list[tuple[int, int, str]]] = {}
        for record in self.manifest.files:
            for key, (start, stop) in record.ranges.items():
                self._holders.setdefault(key, []).append((start, stop, record.name))
        self._open: dict[str, safe_open] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._holders

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of ``KIND/PARAMETER`` as a 1-D fp32 tensor.

        Raises:
            RunError: if the files do not hold all of them, or are damaged.
        """
        result, missing = torch.empty(stop - start), stop - start
        for first, last, name in self._holders.get(key, []):
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
            if name not in self._open:
                self._open[name] = safe_open(str(path), framework="pt")
            return self._open[name].get_slice(key)[start:stop]
        except Exception as error:  # safetensors raises its own SafetensorError, not an OSError or ValueError
            raise RunError(f"{path}: cannot be read ({error}); use an earlier checkpoint") from error


def read_run_config(checkpoint: Path) -> RunConfig:
    """The configuration that a checkpoint was written with.

    Raises:
        RunError: if config.yaml is missing or does not fit this release.
    """
    path = checkpoint / "config.yaml"
    try:
        return from_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; is {checkpoint} a complete checkpoint?") from error


def read_weights(checkpoint: Path, source: Literal["student", "teacher"]) -> dict[str, Tensor]:
    """Whole fp32 parameters by name; the teacher's lack the decoders.

    Raises:
        RunError: if the checkpoint is incomplete or damaged.
    """
    reader = FragmentReader(checkpoint)
    weights = {
        name: reader.read(f"{source}/{name}", 0, math.prod(shape)).view(shape)
        for name, shape in reader.manifest.shapes.items()
        if source == "student" or f"{source}/{name}" in reader
    }
    if not weights:
        raise RunError(f"{checkpoint}: holds no {source}")
    return weights
