"""Heads of fine-tuned files: their tensors are those of their kind, or are named; so are options that are left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.cli import main
from tests.unit.deploy.export.fairseq_files import GOLDEN, ctc, glue, imagenet, pretrained, save

GLUE = "classification_heads.sentence_classification_head."
MAKERS: dict[str, tuple[Callable[..., dict[str, Any]], str]] = {
    "glue": (glue, "text"),
    "ctc": (ctc, "audio"),
    "imagenet": (imagenet, "image"),
}


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("glue", {f"{GLUE}out_proj.weight": (3, 16)}, f"{GLUE}out_proj.weight has shape (3, 16): a head for sequence"),
        ("glue", {f"{GLUE}dense.weight": (16, 32)}, f"{GLUE}dense.weight has shape (16, 32)"),
        ("glue", {f"{GLUE}dense.bias": (16,)}, "on features of width 32 needs (32,)"),
        ("glue", {f"{GLUE}dense.weight": None}, f"lacks {GLUE}dense.weight of its head"),
        ("glue", {f"{GLUE}out_proj.bias": (0,), f"{GLUE}out_proj.weight": (0, 32)}, "a head without outputs"),
        ("ctc", {"w2v_encoder.proj.weight": (32, 8)}, "w2v_encoder.proj.weight has shape (32, 8): a head for ctc"),
        ("ctc", {"w2v_encoder.proj.bias": None}, "lacks w2v_encoder.proj.bias of its head"),
        ("imagenet", {"fc_norm.bias": (8,)}, "fc_norm.bias has shape (8,)"),
        ("imagenet", {"fc_norm.weight": None}, "lacks fc_norm.weight of its head"),
        ("imagenet", {"head.weight": (10,)}, "head.weight has shape (10,): a head for image-classification"),
    ],
    ids=str,
)
def test_tensors_of_other_shapes_are_refused_by_name(
    tmp_path: Path,
    kind: str,
    change: dict[str, tuple[int, ...] | None],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, modality = MAKERS[kind]
    checkpoint = make(GOLDEN / modality / "mini")
    for name, shape in change.items():
        del checkpoint["model"][name]
        checkpoint["model"] |= {} if shape is None else {name: torch.ones(shape)}
    path = save(checkpoint, tmp_path / "model.pt")
    assert main(["import", "fairseq", str(path), str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "run").exists()


def test_options_of_training_are_left_out_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a pretraining's file as of others; the way back writes them again."""
    checkpoint = pretrained(GOLDEN / "audio" / "mini")
    checkpoint["cfg"]["model"]["end_drop_path_rate"] = 0.1
    checkpoint["cfg"]["model"]["modalities"]["audio"]["mask_dropout"] = 0.2
    path = save(checkpoint, tmp_path / "model.pt")
    assert main(["import", "fairseq", str(path), str(tmp_path / "run")]) == 0
    note = "left out model.end_drop_path_rate 0.1, model.modalities.audio.mask_dropout 0.2, which only training reads"
    assert note in capsys.readouterr().out
    assert main(["export", "fairseq", str(tmp_path / "run"), str(tmp_path / "back.pt")]) == 0
    assert torch.load(tmp_path / "back.pt", weights_only=True)["cfg"] == checkpoint["cfg"]
