"""Which weights an export takes: one modality, of the student or the teacher."""

import dataclasses
from pathlib import Path

import pytest
import torch

from deploy.export.encoder import chosen_modality, load_encoder, only
from deploy.export.fairseq_export import export_fairseq
from deploy.export.fairseq_file import read_file
from deploy.export.huggingface import export
from pretrain.checkpoint.store import locate
from pretrain.errors import RunError
from pretrain.evaluate.encoder import trained_encoder
from pretrain.recipes.registry import RECIPES
from tests.unit.deploy.export.checkpoints import write_checkpoint

MODALITIES = ("image", "audio", "text")


@pytest.mark.parametrize("source", ["student", "teacher"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_one_modality_of_a_run_of_several(tmp_path: Path, modality: str, source: str) -> None:
    """Where the teacher has no weights of its own (all of the text's frontend, waveforms' features) the student's."""
    config = RECIPES["multimodal-tiny"]()
    tensors = write_checkpoint(tmp_path, config)
    encoder = load_encoder(locate(tmp_path), only(config.model, modality), source)  # type: ignore[arg-type]
    assert list(encoder.frontends) == [modality]
    for name, parameter in encoder.named_parameters():
        own = f"{source}/{name}" if f"{source}/{name}" in tensors else f"student/{name}"
        assert torch.equal(parameter, tensors[own]), name
    whole = dict(trained_encoder(locate(tmp_path), source).named_parameters())  # type: ignore[arg-type]
    assert all(torch.equal(parameter, whole[name]) for name, parameter in encoder.named_parameters())
    if source == "teacher":
        taken = {name for name, _ in encoder.named_parameters() if f"teacher/{name}" not in tensors}
        assert {name.split(".")[2] for name in taken} == {"image": set(), "audio": {"local"}, "text": {"local"}}[
            modality
        ]


def test_commands_take_one_modality(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", RECIPES["multimodal-tiny"]())
    result = export(tmp_path / "run", tmp_path / "hf", modality="audio")
    assert result.parity.difference == 0.0 and "recordings" in result.parity.origin
    export_fairseq(tmp_path / "run", tmp_path / "text.pt", "text")
    file = read_file(tmp_path / "text.pt")
    assert file.cfg["model"]["supported_modality"] == "TEXT"
    assert not any("AUDIO" in name or "IMAGE" in name for name in file.student)
    with pytest.raises(RunError, match="--modality: the checkpoint has image, audio, text; say which of them"):
        export(tmp_path / "run", tmp_path / "other")


def test_modality_is_known_or_asked_for() -> None:
    model = RECIPES["text-tiny"]().model
    assert chosen_modality(model, None) == chosen_modality(model, "text") == "text"
    with pytest.raises(RunError, match="the checkpoint has no image, only text"):
        chosen_modality(model, "image")


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    config = RECIPES["text-tiny"]()
    write_checkpoint(tmp_path, config, teacher=False)
    checkpoint = locate(tmp_path)
    with pytest.raises(RunError, match="holds no teacher; use --source student"):
        load_encoder(checkpoint, config.model, "teacher")
    encoder = config.model.encoder
    deeper, narrower = (
        dataclasses.replace(config.model, encoder=dataclasses.replace(encoder, **change))
        for change in ({"depth": encoder.depth + 1}, {"mlp_ratio": 2.0})
    )
    write_checkpoint(tmp_path / "deeper", dataclasses.replace(config, model=deeper))
    for where, model, name in (
        (checkpoint, deeper, f"encoder.blocks.{encoder.depth}"),
        (locate(tmp_path / "deeper"), config.model, f"encoder.blocks.{encoder.depth}"),
        (checkpoint, narrower, "mlp"),
    ):
        with pytest.raises(RunError, match="does not fit the model of its config.yaml") as error:
            load_encoder(where, model, "student")
        assert name in str(error.value)
