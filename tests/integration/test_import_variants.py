"""Files of fairseq with configurations that no golden has, through the commands, against the reference's arithmetic."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

import deploy.export.registration  # noqa: F401  the Auto classes need it
from deploy.cli import main
from deploy.export.fairseq import fairseq_name
from deploy.export.fairseq_run import model_config
from model.data2vec import Data2Vec
from model.positions import sincos_2d
from tests.unit.deploy.export.fairseq_files import GOLDEN, content, golden, save
from tests.unit.deploy.export.reference import features

MODEL: dict[str, dict[str, Any]] = {"three heads": {"num_heads": 3, "embed_dim": 48}, "eps": {"norm_eps": 1e-4}}
ALIBI = {"use_alibi_encoder": True, "learned_alibi_scale": True}
SIDES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "audio, own blocks, scale per layer and head": (
        "audio",
        {"prenet_depth": 2, "learned_alibi_scale_per_layer": True, "learned_alibi_scale_per_head": True},
        {},
    ),
    "audio, scale per layer, three heads": (
        "audio",
        {"learned_alibi_scale_per_layer": True, "learned_alibi_scale_per_head": False},
        MODEL["three heads"],
    ),
    "audio, even kernel, extra tokens": ("audio", {"conv_pos_width": 20, "num_extra_tokens": 2}, {}),
    "audio, few layers, no ALiBi": (
        "audio",
        {"feature_encoder_spec": "[(24, 10, 5)] + [(16, 3, 2)] * 2", "use_alibi_encoder": False, "conv_pos_depth": 2},
        MODEL["eps"],
    ),
    "audio, fixed scale": ("audio", {"learned_alibi_scale": False, "learned_alibi_scale_per_head": False}, {}),
    "image, ALiBi per layer and head": (
        "image",
        ALIBI
        | {"learned_alibi_scale_per_layer": True, "learned_alibi_scale_per_head": True, "num_extra_tokens": 2}
        | {"prenet_depth": 2},
        {},
    ),
    "image, Euclidean": ("image", ALIBI | {"alibi_distance": "euclidean"}, MODEL["three heads"]),
    "image, all blocks shared, no CLS": (
        "image",
        {"prenet_depth": 0, "num_extra_tokens": 0},
        MODEL["eps"] | {"cls_loss": 0.0},
    ),
    "text, own blocks, ALiBi, extra token": (
        "text",
        ALIBI | {"prenet_depth": 2, "num_extra_tokens": 1, "learned_alibi_scale_per_head": True},
        {},
    ),
    "text, three heads": ("text", {}, MODEL["three heads"] | MODEL["eps"]),
}
INPUTS = {"image": "pixel_values", "audio": "input_values", "text": "input_ids"}


def variant(modality: str, side: dict[str, Any], model: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A configuration, and tensors that no operation leaves without effect."""
    cfg = copy.deepcopy(golden(GOLDEN / modality / "mini")[0])
    cfg["model"] |= model
    cfg["model"]["modalities"][modality] |= side
    if modality == "image":
        cfg["model"]["modalities"]["image"]["embed_dim"] = cfg["model"]["embed_dim"]
    for options in cfg["model"]["modalities"].values():
        if options is not None and "num_alibi_heads" in options:
            options["num_alibi_heads"] = cfg["model"]["num_heads"]
    ours = model_config(cfg, modality, fine_tuned=False, vocab_size=60, has_scale=False)
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for name, parameter in Data2Vec(ours).named_parameters():
        value = torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.dim() > 1 else 0.2)
        value /= max(1.0, parameter[0].numel() ** 0.5) if parameter.dim() > 1 else 1.0
        shifted = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "alibi_scale"))
        tensors[fairseq_name(name)] = value + 1 if shifted else value
    if ours.image is not None:
        table = sincos_2d(ours.image.grid_size, ours.encoder.dim)
        tensors["modality_encoders.IMAGE.fixed_positional_encoder.positions"] = table
    if modality == "text":
        tensors["modality_encoders.TEXT.local_encoder.embed_positions.weight"][1] = 0
    return cfg, tensors


def batch(modality: str, side: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Raw input of different lengths, and its padding."""
    generator = torch.Generator().manual_seed(5)
    if modality == "image":
        size = side["input_size"]
        return torch.randn(3, side["in_chans"], size, size, generator=generator), None
    lengths = torch.tensor([6000, 3210, 4400] if modality == "audio" else [11, 16, 3])
    padded = torch.arange(int(lengths.max())) >= lengths[:, None]
    if modality == "audio":
        return torch.randn(padded.shape, generator=generator).masked_fill(padded, 0), padded
    return torch.randint(4, 60, padded.shape, generator=generator).masked_fill(padded, 1), padded


def older(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A tensor as older files have it."""
    if name.endswith("alibi_scale") and len(tensor) == 1:
        return name, tensor[0]
    return name.replace("fixed_positional_encoder.positions", "positional_encoder.pos_embed"), tensor


@pytest.mark.parametrize("modality", INPUTS)
def test_reference_has_the_features_of_the_goldens(modality: str) -> None:
    cfg, tensors = golden(GOLDEN / modality / "mini")
    student = {name.removeprefix("param."): tensor for name, tensor in tensors.items() if name.startswith("param.")}
    padded = tensors.get("input.padding_mask")
    padded = None if padded is None else padded.bool()
    found = features(cfg["model"], student, modality, tensors["input.source"], padded)
    extra = cfg["model"]["modalities"][modality]["num_extra_tokens"]
    assert (found[:, extra:] - tensors["features.x"]).abs().max() < 1e-5


@pytest.mark.parametrize("name", SIDES)
def test_variant_has_the_references_features(name: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    modality, side, model = SIDES[name]
    cfg, tensors = variant(modality, side, model)
    old = OrderedDict(older(key, tensor) for key, tensor in tensors.items())
    save(content(cfg, old), tmp_path / "model.pt")
    assert main(["import", "fairseq", str(tmp_path / "model.pt"), str(tmp_path / "run")]) == 0
    assert main(["export", "hf", str(tmp_path / "run"), str(tmp_path / "hf"), "--source", "student"]) == 0
    source, padded = batch(modality, cfg["model"]["modalities"][modality])
    expected = features(cfg["model"], tensors, modality, source, padded)
    encoder = AutoModel.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    mask = {} if padded is None else {"attention_mask": (~padded).long()}
    with torch.no_grad():
        found = encoder(**{INPUTS[modality]: source}, **mask).last_hidden_state
    assert (found - expected).abs().max() < 1e-5
    assert expected.std() > 0.3
    if padded is not None:  # what a key that is padding weighs is seen
        assert (features(cfg["model"], tensors, modality, source, None) - expected).abs().max() > 1e-3
    assert load_file(tmp_path / "hf" / "model.safetensors").keys() == encoder.state_dict().keys()


def fine_tuned(kind: str, cfg: dict[str, Any], encoder: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A file of a fine-tuned model, and the weights of its head by fairseq's names."""
    dim, generator = cfg["model"]["embed_dim"], torch.Generator().manual_seed(6)
    glue = "classification_heads.task."
    shapes = {
        "ctc": {"w2v_encoder.proj": (32, dim)},
        "glue": {f"{glue}dense": (dim, dim), f"{glue}out_proj": (3, dim)},
        "imagenet": {"fc_norm": (dim,), "head": (7, dim)},
    }[kind]
    head = {}
    for name, shape in shapes.items():
        head[f"{name}.weight"] = torch.randn(shape, generator=generator) / dim**0.5
        head[f"{name}.bias"] = torch.randn(shape[:1], generator=generator)
    prefix, place = ("w2v_encoder.w2v_model.", "w2v_args") if kind == "ctc" else ("model.", "pretrained_model_args")
    wrapped = {prefix + name: tensor for name, tensor in encoder.items() if ".decoder." not in name}
    return content({"model": {"_name": kind, place: cfg}}, OrderedDict(wrapped | head)), head


def logits_of(kind: str, head: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """What the facts (section 4) say of the heads; tokens (B, T, D) without extra ones."""

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, head[f"{name}.weight"], head[f"{name}.bias"])

    if kind == "ctc":
        return linear("w2v_encoder.proj", tokens)
    if kind == "glue":
        hidden = linear("classification_heads.task.dense", tokens[:, 0])
        return linear("classification_heads.task.out_proj", hidden.tanh())
    pooled = tokens.mean(dim=1)
    return linear(
        "head", functional.layer_norm(pooled, pooled.shape[-1:], head["fc_norm.weight"], head["fc_norm.bias"], 1e-6)
    )


@pytest.mark.parametrize(
    ("kind", "name", "auto_class"),
    [
        ("ctc", "audio, own blocks, scale per layer and head", "AutoModelForCTC"),
        ("glue", "text, own blocks, ALiBi, extra token", "AutoModelForSequenceClassification"),
        ("imagenet", "image, ALiBi per layer and head", "AutoModelForImageClassification"),
    ],
)
def test_fine_tuned_variant_has_the_references_logits(kind: str, name: str, auto_class: str, tmp_path: Path) -> None:
    modality, side, model = SIDES[name]
    cfg, tensors = variant(modality, side, model)
    checkpoint, head = fine_tuned(kind, cfg, tensors)
    save(checkpoint, tmp_path / "model.pt")
    assert main(["import", "fairseq", str(tmp_path / "model.pt"), str(tmp_path / "run")]) == 0
    assert main(["export", "hf", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    source, padded = batch(modality, cfg["model"]["modalities"][modality])
    encoded = features(cfg["model"], tensors, modality, source, padded)
    expected = logits_of(kind, head, encoded[:, cfg["model"]["modalities"][modality]["num_extra_tokens"] :])
    whole = getattr(transformers, auto_class).from_pretrained(tmp_path / "hf", trust_remote_code=True)
    mask = {} if padded is None else {"attention_mask": (~padded).long()}
    with torch.no_grad():
        found = whole(**{INPUTS[modality]: source}, **mask).logits
    if kind == "ctc":  # of padded frames the head says the blank
        real = (found > -1e30).all(dim=-1)
        assert 0 < (~real).sum() < real.numel()
        found, expected = found[real], expected[real]
    assert (found - expected).abs().max() < 1e-5
