"""Files in fairseq's layout, made from the goldens: pretrained models, and fine-tuned ones around them."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parents[3] / "golden"
LETTERS = [*"|ETAOINHSRDLUMWCFGYPBVK'XJQZ"]
"""In another order than LibriSpeech's."""
SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS]
NUM_UPDATES = 400


def golden(case: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A case's configuration and tensors."""
    facts = json.loads(case.with_suffix(".json").read_text(encoding="utf-8"))
    return facts["config_resolved"], load_file(case.with_suffix(".safetensors"))


def group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def pretrained(case: Path) -> dict[str, Any]:
    """What ``torch.save`` gets from fairseq's trainer for a case."""
    cfg, tensors = golden(case)
    model: OrderedDict[str, Any] = OrderedDict(group(tensors, "param."))
    model["_ema"] = group(tensors, "ema.")
    return content(cfg, model)


def content(cfg: Any, model: dict[str, Any], task_state: Any = None) -> dict[str, Any]:
    return {
        "args": None,
        "cfg": cfg,
        "model": model,
        "criterion": None,
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "num_updates": NUM_UPDATES}],
        "task_state": task_state or {},
        "extra_state": {"train_iterator": {"epoch": 3}, "previous_training_time": 1.5},
        "last_optimizer_state": {"state": {}, "param_groups": []},
    }


def half(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The same as an fp16 training writes it: the model in half precision, the teacher not."""
    model = OrderedDict((n, t if n == "_ema" else t.half()) for n, t in checkpoint["model"].items())
    return checkpoint | {"model": model}


def encoder_of(case: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration, and the tensors that fine-tuning keeps."""
    cfg, tensors = golden(case)
    return cfg, {name: tensor for name, tensor in group(tensors, "param.").items() if ".decoder." not in name}


def head(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def imagenet(case: Path, classes: int = 10) -> dict[str, Any]:
    cfg, encoder = encoder_of(case)
    dim = cfg["model"]["embed_dim"]
    cfg["model"] |= {"start_drop_path_rate": 0.05, "end_drop_path_rate": 0.1}
    cfg["model"]["modalities"]["image"] |= {"end_drop_path_rate": 0.05, "mae_masking": False}
    shapes = {"fc_norm.weight": (dim,), "fc_norm.bias": (dim,), "head.weight": (classes, dim), "head.bias": (classes,)}
    options = {"_name": "mae_image_classification", "prediction_mode": "MEAN_POOLING", "pretrained_model_args": cfg}
    model = {f"model.{name}": tensor for name, tensor in encoder.items()} | head(shapes)
    return content({"model": options}, OrderedDict(model))


def glue(case: Path, classes: int = 3) -> dict[str, Any]:
    cfg, encoder = encoder_of(case)
    dim, name = cfg["model"]["embed_dim"], "classification_heads.sentence_classification_head"
    shapes = {f"{name}.dense.weight": (dim, dim), f"{name}.dense.bias": (dim,)}
    shapes |= {f"{name}.out_proj.weight": (classes, dim), f"{name}.out_proj.bias": (classes,)}
    options = {"_name": "data2vec_text_classification", "pooler_activation_fn": "tanh", "pretrained_model_args": cfg}
    model = {f"model.{name}": tensor for name, tensor in encoder.items()} | head(shapes)
    return content({"model": options}, OrderedDict(model))


def ctc(case: Path, task_state: Any = None) -> dict[str, Any]:
    """Fine-tuned for 10 h or so: its options lie over those of the pretraining."""
    cfg, encoder = encoder_of(case)
    dim = cfg["model"]["embed_dim"]
    cfg["model"] |= {"layerdrop": 0.1, "encoder_dropout": 0.1}
    over = {"mask_prob": 0.0, "mask_length": 10, "mask_channel_prob": 0.25, "mask_dropout": 0.1}
    over |= {"local_grad_mult": 0.0, "encoder_zero_mask": False, "learned_alibi_scale": False}
    cfg["model"]["modalities"]["audio"] |= over
    shapes = {"w2v_encoder.proj.weight": (len(SYMBOLS), dim), "w2v_encoder.proj.bias": (len(SYMBOLS),)}
    model = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in encoder.items()} | head(shapes)
    options = {"_name": "wav2vec_ctc", "blank_weight": 0.0, "w2v_args": cfg}
    return content({"model": options}, OrderedDict(model), task_state)


def save(checkpoint: dict[str, Any], path: Path) -> Path:
    torch.save(checkpoint, path)
    return path
