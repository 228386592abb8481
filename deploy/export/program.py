"""A checkpoint's encoder as one file that runs without this package, compared with our own model before it appears."""

import importlib
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
_BLANK = 1e30
"""Below what a CTC head gives, negative, to all letters of a padded frame."""
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
        rounding = max(_difference(*pair) for pair in zip(exact, ours, strict=True))
        _write(form, model, facts, path, dtype)
        run = form.read(path)
        theirs = [run(inputs.given(facts.modality)) for inputs in checks]
        found = max(_difference(*pair) for pair in zip(ours, theirs, strict=True))
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


def _difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys(), (list(ours), list(theirs))
    return max(largest_difference([ours[name]], [theirs[name]]) for name in ours)


@torch.no_grad()
def fp32_rounding(model: Model, checks: list[Inputs], ours: list[dict[str, Tensor]]) -> float:
    """How far our own model in fp32 is from itself in fp64; the model stays fp64."""
    model.encoder.double()
    model = model._replace(weights={name: weight.double() for name, weight in model.weights.items()})
    largest = 0.0
    for inputs, rounded in zip(checks, ours, strict=True):
        source = inputs.source.double() if inputs.source.is_floating_point() else inputs.source
        for name, exact in expected(model, inputs._replace(source=source)).items():
            difference = (rounded[name].double() - exact)[rounded[name].abs() < _BLANK]
            largest = max(largest, difference.abs().max().item())
    return largest
