r"""The public reference, fairseq's data2vec 2.0, from a checkout that the user has: for ``step_time --reference``.

It runs beside ours in one process, so that both meet the same machine. Nothing of it is part of this package. It
needs what fairseq's model imports; torchvision, which only its data sets use, is stood in for:

    git clone https://github.com/facebookresearch/fairseq && git -C fairseq checkout 3d262bb2
    pip install --no-deps omegaconf==2.3.0 hydra-core==1.3.2 antlr4-python3-runtime==4.9.3 timm bitarray sacrebleu \
        portalocker colorama tabulate lxml
"""

import dataclasses
import logging
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Time = Callable[[str, Callable[[], Any]], Any]
"""Runs a part of the step and keeps its time under a name."""
CONFIGS = {
    "image-base": "base_images_only_task",
    "image-large": "large_images_only_task",
    "image-huge14": "huge_images14_only_task",
    "image-huge16": "huge_images_only_task",
    "audio-base": "base_audio_only_task",
    "audio-large": "large_audio_only_task",
    "text-base": "base_text_only_task",
    "text-large": "large_text_only_task",
}
"""Its configuration of our recipes."""
UNUSED = ("", ".datasets", ".datasets.vision", ".transforms", ".transforms.functional", ".ops", ".ops.misc")
VOCABULARY_SIZE = 50_265


class ReferenceStep:
    """A training step of the reference without optimizer: both forward passes, backward, the average."""

    def __init__(self, checkout: Path, recipe: str, views: int, device: torch.device, dtype: torch.dtype) -> None:
        """Build its model with its own initial weights.

        Raises:
            SystemExit: if it has no such configuration or cannot be imported.
        """
        if recipe not in CONFIGS:
            raise SystemExit(f"--reference: fairseq has no configuration of {recipe}; it has {', '.join(CONFIGS)}")
        _make_importable(checkout)
        try:
            from examples.data2vec.models.data2vec2 import Data2VecMultiConfig, Data2VecMultiModel
            from omegaconf import OmegaConf
        except ImportError as error:
            raise SystemExit(f"--reference {checkout}: {error}; benchmarks/reference.py says what it needs") from error
        path = checkout / "examples" / "data2vec" / "config" / "v2" / f"{CONFIGS[recipe]}.yaml"
        asked = OmegaConf.load(path).model
        asked.pop("_name")
        for side in asked.modalities.values():
            side.get("decoder", {}).pop("final_layer_norm", None)  # its own code does not know the key
        config = OmegaConf.merge(OmegaConf.structured(Data2VecMultiConfig), asked, {"clone_batch": views, "seed": 1})
        run = OmegaConf.create({"model": config})  # values of the model refer to it as the run's
        self._model = Data2VecMultiModel.build_model(run.model, _Task()).to(device, dtype).train()
        self._updates = 0

    def __call__(self, time: Time, source: Tensor, masks: Tensor) -> None:
        """One step.

        Args:
            time: measures the parts.
            source: as our model takes it.
            masks: (B, M, T) bool, True = removed.
        """
        mask = masks.flatten(0, 1)
        out = time("forward", lambda: self._model(source, precomputed_mask=mask))
        loss = sum(loss.sum() for loss in out["losses"].values()) / out["sample_size"]
        time("backward", loss.backward)
        self._updates += 1
        time("ema", lambda: self._model.set_num_updates(self._updates))
        self._model.zero_grad()


class _Task:
    """What its text encoder asks a task for."""

    def __init__(self) -> None:
        self.source_dictionary = _Vocabulary()


class _Vocabulary:
    def __len__(self) -> int:
        return VOCABULARY_SIZE

    def pad(self) -> int:
        return 1


def _make_importable(checkout: Path) -> None:
    """Fairseq was written for older versions of Python, NumPy and torchvision."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(checkout))
    for name in UNUSED:
        module = _Absent(f"torchvision{name}")
        parent, _, leaf = module.__name__.rpartition(".")
        sys.modules[module.__name__] = module
        if parent:
            setattr(sys.modules[parent], leaf, module)
    for kind in (float, int, bool, object):
        np.__dict__.setdefault(kind.__name__, kind)
    get_field = dataclasses._get_field  # type: ignore[attr-defined]

    def tolerant(owner: type, name: str, *rest: Any) -> Any:
        """Instances of dataclasses as defaults, which Python 3.11 refuses because they are not hashable."""
        default = getattr(owner, name, None)
        value = getattr(default, "default", default) if isinstance(default, dataclasses.Field) else default
        if dataclasses.is_dataclass(value) and type(value).__hash__ is None:
            type(value).__hash__ = object.__hash__  # type: ignore[method-assign]
        return get_field(owner, name, *rest)

    dataclasses._get_field = tolerant  # type: ignore[attr-defined]


class _AnyClass(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Absent(types.ModuleType):
    """A module in which every name is a class of its own."""

    __path__: list[str] = []  # noqa: RUF012  # of a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyClass(name, (), {})
