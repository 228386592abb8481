"""A checkpoint's encoder as one file that runs without this package, compared with our own model before it appears."""

import importlib
import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from deploy.export.folder import new_file
from deploy.export.format import Format
from deploy.export.inference import Inference, expected, traced
from deploy.export.inputs import Inputs
from deploy.export.trained import DTYPES, Facts, Model, Parity, largest_difference, load
from pretrain.errors import RunError
from pretrain.evaluate.encoder import Source

_MODULES = {"onnx": "deploy.export.onnx", "torch": "deploy.export.package"}
_ROUNDINGS = 2
"""Another library may be as far from us as both are from what a higher precision gives."""


def export(
    checkpoint: Path,
    out: Path,
    format_name: Literal["onnx", "torch"],
    *,
    source: Source = "student",
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    modality: str | None = None,
    tolerance: float | None = None,
) -> Parity:
    """Write ``out``; nothing appears there unless what it computes, read again, equals our model.

    Args:
        checkpoint: a run directory or one of its checkpoints, of any layout.
        out: file, must not exist.
        format_name: which.
        source: whose weights.
        dtype: of the stored weights.
        modality: which of a model of several.
        tolerance: largest difference that is let through; None for the format's own, or, where another library
            computes, twice what our own model loses by computing in fp32 instead of fp64 (in half precision instead of
            fp32) if that is more.
    Raises:
        RunError: if the checkpoint cannot be used, ``out`` exists, or the outputs differ.
    """
    with new_file(out) as path:
        model, facts = load(checkpoint, source, modality)
        form = importlib.import_module(_MODULES[format_name]).FORMAT
        arithmetic = DTYPES[form.computes[dtype]]
        checks = [facts.inputs, facts.inputs.alone()]
        exact = [expected(model, inputs) for inputs in checks]
        model.round(DTYPES[dtype])
        ours = _ours(model, facts, checks, arithmetic)
        rounding = difference(checks, exact, ours)
        _write(form, model, facts, path, dtype)
        run = form.read(path)
        theirs = [run(inputs.given(facts.modality)) for inputs in checks]
        found = difference(checks, ours, theirs)
        parity = Parity(found, rounding, checks[-1].origin)
        allowed = tolerance or form.tolerance
        if tolerance is None and form.other_kernels and found > allowed:  # may be within what the precision loses
            lost = fp32_rounding(model, checks, ours) if arithmetic == torch.float32 else rounding
            allowed = max(allowed, _ROUNDINGS * lost)
        if not found <= allowed:
            raise RunError(f"{out}: not written: {parity}; more than {allowed:.2g} (--tolerance)")
    return parity


def _write(form: Format, model: Model, facts: Facts, path: Path, dtype: str) -> None:
    ((modality, side),) = model.encoder.config.modalities.items()
    network = Inference(model, DTYPES[form.computes[dtype]])
    form.write(traced(network, facts.inputs, modality, side), path, DTYPES[dtype])


@torch.no_grad()
def _ours(model: Model, facts: Facts, checks: list[Inputs], arithmetic: torch.dtype) -> list[dict[str, Tensor]]:
    """Outputs of our own model; in half precision of the model that is exported, which is ours in fp32."""
    if arithmetic == torch.float32:
        return [expected(model, inputs) for inputs in checks]
    network = Inference(model, arithmetic)
    return [network(**inputs.given(facts.modality)) for inputs in checks]


def difference(checks: list[Inputs], ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> float:
    """Largest of all outputs for all inputs; infinite where a head gives padded frames another letter than ours."""
    found = []
    for inputs, mine, other in zip(checks, ours, theirs, strict=True):
        assert mine.keys() == other.keys(), (list(mine), list(other))
        found.append(largest_difference(inputs, list(mine.values()), [other[name] for name in mine]))
        if "logits" in mine and inputs.padding is not None and mine["logits"].dim() == 3:
            letters = [logits[inputs.padding].argmax(dim=-1) for logits in (mine["logits"], other["logits"])]
            found.append(0.0 if torch.equal(*letters) else math.inf)
    return torch.tensor(found, dtype=torch.float64).max().item()


@torch.no_grad()
def fp32_rounding(model: Model, checks: list[Inputs], ours: list[dict[str, Tensor]]) -> float:
    """How far our own model in fp32 is from itself in fp64; the model stays fp64."""
    model.encoder.double()
    model = model._replace(weights={name: weight.double() for name, weight in model.weights.items()})
    exact = []
    for inputs in checks:
        source = inputs.source.double() if inputs.source.is_floating_point() else inputs.source
        exact.append(expected(model, inputs._replace(source=source)))
    return difference(checks, exact, ours)
