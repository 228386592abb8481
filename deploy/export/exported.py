"""Folders of ``d2v export hf``, read without transformers: tensors have our names, so our own model computes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open

from data_pipelines.config import AudioSourceConfig, ImageSourceConfig, SourceConfig, TextSourceConfig
from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.data2vec import Data2Vec
from model.sections import AlibiConfig, EncoderConfig, MaskConfig, TargetConfig
from pretrain.errors import RunError

_HEAD = "data2vec2."
"""Before the names of an encoder that has a head."""
Result = TypeVar("Result")


def is_exported(path: Path) -> bool:
    """Whether a folder is one of transformers and not a run or a checkpoint."""
    return (path / "config.json").is_file() and not (path / "config.yaml").exists()


def read_config(folder: Path) -> tuple[ModelConfig, SourceConfig]:
    """The encoder, and how its inputs are made. What only trainings read is as in no run: not to be trained on.

    Raises:
        RunError: if the folder holds another model, or its files are damaged.
    """
    fields = _read(folder / "config.json", lambda path: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(fields, dict) or fields.get("model_type") != "data2vec2":
        raise RunError(f"{folder / 'config.json'}: not of 'd2v export hf'")
    return _read(folder / "config.json", lambda _: (_model(fields), _source(folder, fields)))


@torch.no_grad()
def load_exported(folder: Path, model: ModelConfig) -> Data2Vec:
    """The encoder, fp32, in eval mode, tensor by tensor; heads are left out.

    Raises:
        RunError: if the weights are damaged, or not those of the configuration.
    """
    encoder = Data2Vec(model, role="encoder")
    ours = encoder.state_dict()

    def fill(path: Path) -> set[str]:
        with safe_open(path, "pt") as file:
            for stored in file.keys():  # noqa: SIM118  no dictionary
                name = stored.removeprefix(_HEAD)
                if name in ours:
                    ours[name].copy_(file.get_tensor(stored))
            return {stored.removeprefix(_HEAD) for stored in file.keys()}  # noqa: SIM118

    lacking = ours.keys() - _read(folder / "model.safetensors", fill)
    if lacking:
        raise RunError(f"{folder / 'model.safetensors'}: lacks {min(lacking)}")
    return encoder.eval()


def _read(path: Path, function: Callable[[Path], Result]) -> Result:
    try:
        return function(path)
    except RunError:
        raise
    except Exception as error:  # of a file that is missing, no JSON, cut short; of fields that are no model's
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunError(f"{path}: cannot be read: {reason}; is {path.parent} of 'd2v export hf'?") from error


def _model(fields: dict[str, Any]) -> ModelConfig:
    dim = fields["hidden_size"]
    num_prenet = fields["num_prenet_layers"]
    encoder = EncoderConfig(
        depth=fields["num_hidden_layers"] - num_prenet,
        dim=dim,
        num_heads=fields["num_attention_heads"],
        mlp_ratio=fields["intermediate_size"] / dim,
        norm_eps=fields["layer_norm_eps"],
        init_std=fields["initializer_range"],
    )
    shared = {
        "prenet_depth": num_prenet,
        "num_extra_tokens": fields["num_extra_tokens"],
        "alibi": AlibiConfig(**fields["alibi"]) if fields.get("alibi") else None,
        "target": TargetConfig(top_k=1),
        "mask": MaskConfig(prob=0.5),
    }
    side: ImageConfig | AudioConfig | TextConfig
    if fields["modality"] == "image":
        own = {"image_size": "image_size", "patch_size": "patch_size", "in_channels": "num_channels"}
        side = ImageConfig(**shared, **{ours: fields[theirs] for ours, theirs in own.items()})
        return ModelConfig(encoder=encoder, image=side)
    if fields["modality"] == "audio":
        depth, kernel, groups = fields["conv_positions"]
        positions = {"positions_depth": depth, "positions_width": depth * kernel, "positions_groups": groups}
        side = AudioConfig(**shared, **positions, conv_layers=tuple(map(tuple, fields["conv_layers"])))
        return ModelConfig(encoder=encoder, audio=side)
    side = TextConfig(**shared, vocab_size=fields["vocab_size"], max_positions=fields["max_positions"])
    return ModelConfig(encoder=encoder, text=side)


def _source(folder: Path, fields: dict[str, Any]) -> SourceConfig:
    """What preprocessor_config.json says."""
    if fields["modality"] == "text":
        return TextSourceConfig()
    settings = _read(folder / "preprocessor_config.json", lambda path: json.loads(path.read_text(encoding="utf-8")))
    if fields["modality"] == "audio":
        return AudioSourceConfig(sample_rate=settings["sampling_rate"], normalize=settings["do_normalize"])
    return ImageSourceConfig(
        size=settings["size"]["shortest_edge"],
        channels=fields["num_channels"],
        mean=tuple(settings["image_mean"]),
        std=tuple(settings["image_std"]),
    )
