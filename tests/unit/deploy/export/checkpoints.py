"""Checkpoints of ours without a training: random weights written as one rank writes them."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from model.data2vec import Data2Vec
from model.initialization import initialize
from pretrain.checkpoint.manifest import FileRecord, Manifest, file_sha256
from pretrain.checkpoint.store import step_directory
from pretrain.config import RunConfig, write_yaml


def write_checkpoint(run_dir: Path, config: RunConfig, *, teacher: bool = True) -> dict[str, torch.Tensor]:
    """Student and, with other values, teacher; returns all tensors as ``KIND/PARAMETER``."""
    student = Data2Vec(config.model)
    initialize(student, seed=1)
    own = dict(Data2Vec(config.model, role="teacher").named_parameters())
    tensors = {f"student/{name}": parameter.detach() for name, parameter in student.named_parameters()}
    if teacher:
        tensors |= {f"teacher/{name}": tensors[f"student/{name}"] + 0.01 for name in own}
    checkpoint = step_directory(run_dir, 7)
    checkpoint.mkdir(parents=True)
    file = checkpoint / "rank-00000.safetensors"
    save_file({key: tensor.reshape(-1).clone() for key, tensor in tensors.items()}, file)
    ranges = {key: (0, tensor.numel()) for key, tensor in tensors.items()}
    Manifest(
        step=7,
        positions=dict.fromkeys(config.model.modalities, 0),
        adam_step=7,
        dp_size=1,
        tp_size=1,
        zero_stage=0,
        shapes={name: tuple(parameter.shape) for name, parameter in student.named_parameters()},
        files=[FileRecord(file.name, file.stat().st_size, file_sha256(file), ranges)],
    ).write(checkpoint)
    write_yaml(config, checkpoint / "config.yaml")
    (checkpoint.parent / "latest").write_text(checkpoint.name, encoding="utf-8")
    return tensors
