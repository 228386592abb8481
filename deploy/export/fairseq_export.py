"""A checkpoint of ours as a file that fairseq's data2vec 2.0 loads: the inverse of ``fairseq_import``."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipelines.atomic import replacing
from deploy.export.encoder import chosen_modality, only
from deploy.export.fairseq import fairseq_name, to_fairseq
from deploy.export.fairseq_cfg import fairseq_cfg
from deploy.export.fairseq_origin import HEAD, TEACHER, Origin, read_origin
from deploy.export.fairseq_state import POSITIONS_NAME, WRAPPERS, head_tensor_names, teacher_fairseq_name
from deploy.export.heads import Head, read_head
from model.config import ModelConfig
from model.data2vec import Data2Vec
from model.positions import sincos_2d
from pretrain.checkpoint.progress import read_run_config
from pretrain.checkpoint.store import locate
from pretrain.checkpoint.weights import FragmentReader
from pretrain.errors import RunError


def export_fairseq(checkpoint: Path, out: Path, modality: str | None = None) -> str:
    """Write ``out``, a file of ``torch.save``.

    A checkpoint that was imported and not trained since becomes the file that it came from: the same tensors, to the
    bit and in their precision, under the same configuration.

    Args:
        checkpoint: a run directory or one of its checkpoints, of any layout.
        out: must not exist.
        modality: which of a model of several.
    Returns:
        What was written, in words.
    Raises:
        RunError: if the checkpoint cannot be used, or fairseq cannot say what its configuration says.
    """
    if out.exists():
        raise RunError(f"{out}: exists; choose another file or remove it")
    checkpoint = locate(checkpoint)
    config = read_run_config(checkpoint)
    modality = chosen_modality(config.model, modality)
    model, origin, reader = only(config.model, modality), read_origin(checkpoint), FragmentReader(checkpoint)
    head = read_head(checkpoint)
    student = _student(reader, model, origin)
    teacher = _teacher(reader, model, origin)
    if head is not None:
        student = _wrapped(student, *head, origin)
    content = {
        "args": None,
        "cfg": origin.cfg if origin else fairseq_cfg(config, modality),
        "model": OrderedDict(student | ({"_ema": teacher} if teacher else {})),
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "ModelCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": reader.manifest.step,
            }
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}, "metrics": []},
    }
    _save(content, out)
    parts = f"{len(teacher)} of the teacher" if teacher else "no teacher"
    return f"{modality}, step {reader.manifest.step:,}: {len(student)} tensors of the model, {parts}"


def _student(reader: FragmentReader, model: ModelConfig, origin: Origin | None) -> dict[str, Tensor]:
    with torch.device("meta"):
        known = dict(Data2Vec(model).named_parameters())
        needed = Data2Vec(model, role="encoder").named_parameters()
    missing = [name for name, one in needed if one.requires_grad and name not in reader.manifest.shapes]
    if missing:
        raise RunError(f"{reader.checkpoint}: the student's {missing[0]} does not fit the model of its config.yaml")
    tensors = {
        fairseq_name(name): _stored(reader, "student", name, model) for name in reader.manifest.shapes if name in known
    }
    return _completed(tensors, model, origin, "")


def _teacher(reader: FragmentReader, model: ModelConfig, origin: Origin | None) -> dict[str, Tensor]:
    with torch.device("meta"):
        known = dict(Data2Vec(model, role="teacher").named_parameters())
    tensors = {
        teacher_fairseq_name(name, model): _stored(reader, "teacher", name, model)
        for name in known
        if f"teacher/{name}" in reader
    }
    return _completed(tensors, model, origin, TEACHER) if tensors else {}


def _stored(reader: FragmentReader, kind: str, name: str, model: ModelConfig) -> Tensor:
    return to_fairseq(name, reader.whole(f"{kind}/{name}"), model.encoder.num_heads).contiguous()


def _completed(tensors: dict[str, Tensor], model: ModelConfig, origin: Origin | None, prefix: str) -> dict[str, Tensor]:
    """Tensors in their first precision, with those that our model makes itself."""
    if origin is None:
        image = model.image
        return tensors | ({POSITIONS_NAME: sincos_2d(image.grid_size, model.encoder.dim)} if image else {})
    kept = {
        name.removeprefix(prefix): tensor
        for name, tensor in origin.tensors.items()
        if name.startswith(TEACHER) == bool(prefix)
    }
    typed = {name: tensor.to(_dtype(origin, prefix + name)) for name, tensor in tensors.items()}
    return typed | kept


def _wrapped(
    encoder: dict[str, Tensor], head: Head, weights: dict[str, Tensor], origin: Origin | None
) -> dict[str, Tensor]:
    """The tensors of a fine-tuned model."""
    if origin is None:
        raise RunError("only heads that were imported from fairseq can be exported to it")
    (wrapper,) = [wrapper for wrapper in WRAPPERS if wrapper.kind == head.kind]
    tensors = {wrapper.encoder + name: tensor for name, tensor in encoder.items()}
    for ours, theirs in head_tensor_names(wrapper, head.name).items():
        if ours in weights:
            tensors[theirs] = weights[ours].to(_dtype(origin, HEAD + ours))
    return tensors


def _dtype(origin: Origin, name: str) -> torch.dtype:
    dtype = getattr(torch, origin.dtypes.get(name, "float32"))
    assert isinstance(dtype, torch.dtype)
    return dtype


def _save(content: dict[str, Any], out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror}") from error
    with replacing(out) as stream:
        torch.save(content, stream)
    os.chmod(out, 0o644)
