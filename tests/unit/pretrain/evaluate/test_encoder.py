import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.data2vec import Data2Vec
from model.initialization import initialize
from pretrain.checkpoint.manifest import FileRecord, Manifest
from pretrain.config import RunConfig, write_yaml
from pretrain.errors import RunError
from pretrain.evaluate.encoder import pooled, trained_encoder, untrained_encoder
from pretrain.recipes.registry import recipe
from pretrain.recipes.tiny import image_tiny


@torch.no_grad()
def test_features_leave_out_the_extra_tokens() -> None:
    run = image_tiny()
    assert run.model.image is not None
    image = dataclasses.replace(run.model.image, num_extra_tokens=2)
    encoder = untrained_encoder(dataclasses.replace(run, model=dataclasses.replace(run.model, image=image)))
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    output = encoder.features(images, modality="image")
    assert output.shape == (3, 2 + 49, 96)
    assert torch.equal(pooled(encoder)(images), output[:, 2:].mean(dim=1))


def test_only_images_are_pooled() -> None:
    with pytest.raises(RunError, match="only image encoders .*; this one has audio"):
        pooled(untrained_encoder(recipe("audio-tiny")))


def test_untrained_encoder_is_where_the_run_started() -> None:
    """Same configuration, same seed: every parameter, to the last bit."""
    run = image_tiny()
    student = Data2Vec(run.model)
    initialize(student, run.training.seed)
    other = dataclasses.replace(run, training=dataclasses.replace(run.training, seed=run.training.seed + 1))
    encoder, another = untrained_encoder(run).state_dict(), untrained_encoder(other).state_dict()
    for name, parameter in student.named_parameters():
        assert torch.equal(encoder[name], parameter), name
    assert not torch.equal(encoder["encoder.blocks.0.mlp.up.weight"], another["encoder.blocks.0.mlp.up.weight"])


def checkpoint(folder: Path, run: RunConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Write one of a student and a teacher of different weights; gives back both."""
    nets = {"student": Data2Vec(run.model), "teacher": Data2Vec(run.model, role="teacher")}
    weights: dict[str, dict[str, Tensor]] = {}
    for seed, (kind, net) in enumerate(nets.items()):
        initialize(net, seed)
        weights[kind] = {name: value.detach() for name, value in net.named_parameters() if value.requires_grad}
    flat = {f"{kind}/{name}": value.flatten() for kind, some in weights.items() for name, value in some.items()}
    save_file(flat, folder / "rank-00000.safetensors")
    Manifest(
        step=1,
        positions={},
        adam_step=1,
        dp_size=1,
        tp_size=1,
        zero_stage=1,
        shapes={name: tuple(value.shape) for name, value in weights["student"].items()},
        files=[FileRecord("rank-00000.safetensors", 0, "", {key: (0, value.numel()) for key, value in flat.items()})],
    ).write(folder)
    write_yaml(run, folder / "config.yaml")
    return weights["student"], weights["teacher"]


@pytest.mark.parametrize(
    ("name", "of_student"),
    [("image-tiny", []), ("audio-tiny", ["frontends.audio.local"]), ("text-tiny", ["frontends.text"])],
)
def test_a_teacher_is_completed_by_what_it_reads_of_the_student(
    tmp_path: Path, name: str, of_student: list[str]
) -> None:
    student, teacher = checkpoint(tmp_path, recipe(name))
    found = dict(trained_encoder(tmp_path, "teacher").named_parameters())
    own = {name for name in found if not name.startswith(tuple(of_student))}
    assert own & teacher.keys() == own and len(own) < len(student)
    for parameter, value in found.items():
        if value.requires_grad:
            assert torch.equal(value, (teacher if parameter in own else student)[parameter]), parameter
    for parameter, value in trained_encoder(tmp_path, "student").named_parameters():
        if value.requires_grad:
            assert torch.equal(value, student[parameter]), parameter
