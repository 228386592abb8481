"""The encoder that an export is made of: one modality of a checkpoint's student or teacher, read tensor by tensor."""

import dataclasses
from pathlib import Path

import torch

from deploy.export.fairseq_origin import read_origin
from deploy.export.fairseq_state import POSITIONS_NAME
from model.config import ModelConfig
from model.data2vec import Data2Vec
from pretrain.checkpoint.weights import FragmentReader
from pretrain.errors import RunError
from pretrain.evaluate.encoder import Source


def chosen_modality(model: ModelConfig, asked: str | None) -> str:
    """The modality to export: the only one, or the one that is asked for.

    Raises:
        RunError: if the model does not have it, or has several and none is asked for.
    """
    known = list(model.modalities)
    if asked is None and len(known) == 1:
        return known[0]
    if asked is None:
        raise RunError(f"--modality: the checkpoint has {', '.join(known)}; say which of them")
    if asked not in known:
        raise RunError(f"--modality: the checkpoint has no {asked}, only {', '.join(known)}")
    return asked


def only(model: ModelConfig, modality: str) -> ModelConfig:
    """A model without its other modalities."""
    others = {name: None for name in model.modalities if name != modality}
    return dataclasses.replace(model, **others)  # type: ignore[arg-type]


@torch.no_grad()
def load_encoder(checkpoint: Path, model: ModelConfig, source: Source) -> Data2Vec:
    """The encoder of one step-... directory, fp32, in eval mode; holds no second copy of its weights at any time.

    Args:
        checkpoint: of any layout.
        model: its configuration, or that of one of its modalities.
        source: whose weights. Where the teacher has none of its own it reads what the student makes of the input.
    Raises:
        RunError: if the checkpoint is damaged, has no teacher, or its weights are not those of the configuration.
    """
    reader = FragmentReader(checkpoint)
    shapes = reader.manifest.shapes
    if source == "teacher" and not any(f"teacher/{name}" in reader for name in shapes):
        raise RunError(f"{checkpoint}: holds no teacher; use --source student")
    encoder = Data2Vec(model, role="encoder")
    parts = tuple(f"frontends.{name}." for name in model.modalities)
    parameters = dict(encoder.named_parameters())
    wrong = {name for name in shapes if name.startswith(("encoder.", *parts)) and name not in parameters}
    wrong |= {name for name, parameter in parameters.items() if shapes.get(name, parameter.shape) != parameter.shape}
    wrong |= {name for name, parameter in parameters.items() if parameter.requires_grad and name not in shapes}
    if wrong:
        raise RunError(f"{checkpoint}: the {source}'s {min(wrong)} does not fit the model of its config.yaml")
    for name in parameters.keys() & shapes.keys():  # what is not trained may be missing: it is as it was initialised
        kind = source if f"{source}/{name}" in reader else "student"
        parameters[name].copy_(reader.whole(f"{kind}/{name}"))
    origin = read_origin(checkpoint)
    if origin is not None and POSITIONS_NAME in origin.tensors:  # as that file has them: perhaps in half precision
        dict(encoder.named_buffers())["frontends.image.positions"].copy_(origin.tensors[POSITIONS_NAME])
    return encoder.eval()
