"""The tensors of a fairseq file as those of our student, our teacher and our head; each has a place or is named."""

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deploy.export.fairseq import fairseq_name, from_fairseq, our_name, our_teacher_name
from deploy.export.heads import Kind, needed_shapes
from model.config import ModelConfig
from model.data2vec import Data2Vec, Role
from model.errors import ConfigError
from model.positions import sincos_2d
from pretrain.errors import RunError

POSITIONS = "fixed_positional_encoder.positions"
_OLDER_NAMES = {
    r"\.positional_encoder\.(pos_embed|positions)$": f".{POSITIONS}",
    r"\.fixed_positional_encoder\.pos_embed$": f".{POSITIONS}",
    r"\.local_encoder\.0\.proj\.": ".local_encoder.proj.",
}
_LEFT_OUT = re.compile(r"modality_encoders\.\w+\.encoder_mask")
"""Of old checkpoints; nothing reads it."""
_ASIDE = re.compile(rf"modality_encoders\.\w+\.{re.escape(POSITIONS)}|recon_proj\.(weight|bias)")
"""Positions, which our model makes itself; and what a teacher drags along. Kept for the way back to fairseq."""
_MAX_ROUNDING = 1e-3
"""Of a table of positions that was stored in half precision."""
POSITIONS_NAME = f"modality_encoders.IMAGE.{POSITIONS}"


class Wrapper(NamedTuple):
    """How fairseq wraps the model when it fine-tunes."""

    kind: Kind
    encoder: str
    """Prefix of the encoder's tensors."""
    head: dict[str, str]
    """Pattern of the head's tensors -> our name."""
    config: str
    """Where in ``model`` the pretraining's configuration lies."""


WRAPPERS = (
    Wrapper("ctc", "w2v_encoder.w2v_model.", {r"w2v_encoder\.proj": "classifier"}, "w2v_args"),
    Wrapper(
        "sequence-classification",
        "model.",
        {r"classification_heads\.\w+\.dense": "dense", r"classification_heads\.\w+\.out_proj": "classifier"},
        "pretrained_model_args",
    ),
    Wrapper("image-classification", "model.", {r"fc_norm": "norm", r"head": "classifier"}, "pretrained_model_args"),
)


def wrapper_of(student: dict[str, Tensor]) -> Wrapper | None:
    """The wrapper around a fine-tuned model, told by the names of its head; None for a pretrained one."""
    for wrapper in WRAPPERS:
        head = re.compile(rf"({'|'.join(wrapper.head)})\.(weight|bias)")
        if any(head.fullmatch(name) for name in student) and any(name.startswith(wrapper.encoder) for name in student):
            return wrapper
    return None


def unwrapped(student: dict[str, Tensor], wrapper: Wrapper) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a fine-tuned model: the encoder's as pretraining names them, and the head's by our names."""
    encoder, head = {}, {}
    for name, tensor in student.items():
        ours = [
            f"{place}.{name.rpartition('.')[2]}"
            for pattern, place in wrapper.head.items()
            if re.fullmatch(rf"{pattern}\.(weight|bias)", name)
        ]
        if ours:
            head[ours[0]] = tensor
        else:
            encoder[name.removeprefix(wrapper.encoder)] = tensor
    return encoder, head


def head_tensor_names(wrapper: Wrapper, name: str) -> dict[str, str]:
    """Our names of the tensors that a head may have -> fairseq's; ``name``: of the task, where there are tasks."""
    return {
        f"{place}.{kind}": f"{pattern}.{kind}".replace(r"\w+", name).replace("\\", "")
        for pattern, place in wrapper.head.items()
        for kind in ("weight", "bias")
    }


def check_head(wrapper: Wrapper, name: str, weights: dict[str, Tensor], dim: int) -> None:
    """Compare a head's tensors with what its kind has on an encoder of width ``dim``.

    Raises:
        RunError: if one is missing, or of another shape; names it.
    """
    theirs, outputs = head_tensor_names(wrapper, name), weights.get("classifier.bias", torch.empty(0)).numel()
    norm = any(ours.startswith("norm.") for ours in weights)
    for ours, shape in needed_shapes(wrapper.kind, dim, outputs, norm=norm).items():
        if ours not in weights:
            raise RunError(f"lacks {theirs[ours]} of its head")
        if weights[ours].shape != shape:
            found = f"{theirs[ours]} has shape {tuple(weights[ours].shape)}"
            raise RunError(f"{found}: a head for {wrapper.kind} on features of width {dim} needs {shape}")
    if outputs == 0:
        raise RunError(f"{theirs['classifier.bias']} is empty: a head without outputs")


def current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of any age under today's names and shapes."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _OLDER_NAMES.items():
            name = re.sub(pattern, replacement, name)
        if name.endswith("alibi_scale") and tensor.dim() == 4:
            tensor = tensor.unsqueeze(0)
        renamed[name] = tensor
    return renamed


def modality_of(student: dict[str, Tensor]) -> str:
    """The one modality whose tensors there are.

    Raises:
        RunError: if there is none or several; names a tensor.
    """
    found = {match[1] for name in student if (match := re.match(r"modality_encoders\.(IMAGE|AUDIO|TEXT)\.", name))}
    if len(found) == 1:
        return found.pop().lower()
    if not found:
        raise RunError(f"not a data2vec 2.0 model: no 'modality_encoders', but {min(student, default='no tensor')!r}")
    raise RunError(f"a model of {', '.join(sorted(found))}: only files of one modality are known")


class Mapped(NamedTuple):
    """Tensors of a file in our words."""

    ours: dict[str, tuple[str, Tensor]]
    """Our parameter -> fairseq's name and tensor, in fairseq's layout and precision."""
    aside: dict[str, Tensor]
    """By fairseq's name: known tensors that our model does not hold."""
    notes: list[str]
    """What else there is to say: dropped tensors, unusual ones."""


def mapped(tensors: dict[str, Tensor], model: ModelConfig, role: Role) -> Mapped:
    """Give every tensor of a student, encoder or teacher its place in our model.

    Raises:
        RunError: if one has no place, another shape, or is missing; names it.
    """
    with torch.device("meta"):
        shell = Data2Vec(model, role=role)
    expected = {name: parameter.shape for name, parameter in shell.named_parameters()}
    result = Mapped({}, {}, [])
    strangers = []
    for name, tensor in tensors.items():
        try:
            ours = our_teacher_name(name) if role == "teacher" else our_name(name)
        except ConfigError:
            ours = ""
        if ours in expected:
            if tensor.shape != expected[ours]:
                shapes = f"shape {tuple(tensor.shape)}, its configuration says {tuple(expected[ours])}"
                raise RunError(f"{name} has {shapes}")
            result.ours[ours] = (name, tensor)
        elif _ASIDE.fullmatch(name):
            result.aside[name] = tensor
            result.notes.extend(_unlike_table(name, tensor, model))
        elif _LEFT_OUT.fullmatch(name):
            result.notes.append(f"dropped {name}, which nothing reads")
        else:
            strangers.append(name)
    if strangers:
        raise RunError(f"{_some(strangers)} without a place in our model")
    missing = [teacher_fairseq_name(name, model) if role == "teacher" else fairseq_name(name) for name in expected]
    missing = [name for name in missing if name not in tensors]
    if missing:
        raise RunError(f"lacks {_some(missing)}{' of _ema' if role == 'teacher' else ''}")
    return result


def flat(name: str, tensor: Tensor, model: ModelConfig) -> Tensor:
    """A tensor of fairseq as our checkpoints store it: our layout, fp32, one dimension."""
    return from_fairseq(name, tensor.float(), model.encoder.num_heads).reshape(-1)


def teacher_fairseq_name(ours: str, model: ModelConfig) -> str:
    """A teacher of only blocks names them from the list of blocks on."""
    name = fairseq_name(ours)
    (side,) = model.modalities.values()
    return name.removeprefix("blocks.") if side.teacher_scope == "encoder" else name


def _unlike_table(name: str, tensor: Tensor, model: ModelConfig) -> list[str]:
    """What is unusual about a table of positions."""
    if name != POSITIONS_NAME or model.image is None:
        return []
    table = sincos_2d(model.image.grid_size, model.encoder.dim)
    if tensor.shape != table.shape:
        raise RunError(f"{name} has shape {tuple(tensor.shape)}, its configuration says {tuple(table.shape)}")
    largest = (tensor.float() - table).abs().max().item()
    if largest <= _MAX_ROUNDING:
        return []
    return [f"positions differ from the sine-cosine table by up to {largest:.2g}: exports keep them, training does not"]


def _some(names: list[str]) -> str:
    return f"{names[0]}{f' and {len(names) - 1} more tensors' if len(names) > 1 else ''}"


def head_facts(wrapper: Wrapper, cfg: dict[str, Any], student: dict[str, Tensor]) -> dict[str, Any]:
    """Name and pooling of a head; what our heads do not know is refused.

    Raises:
        RunError: for an option or a number of heads that they do not know.
    """
    model = cfg["model"]
    for option, known in (("blank_weight", 0), ("pooler_activation_fn", "tanh")):
        if model.get(option, known) not in (known, None):
            raise RunError(f"cfg.model.{option}: {model[option]!r} is not supported (only {known!r})")
    names = sorted({name.split(".")[1] for name in student if name.startswith("classification_heads.")})
    if len(names) > 1:
        raise RunError(f"holds the heads {', '.join(names)}: only files with one are known")
    mode = str(model.get("prediction_mode") or "MEAN_POOLING").rpartition(".")[2]
    pooling = {"MEAN_POOLING": "mean", "CLS_TOKEN": "first", "1": "mean", "2": "first"}.get(mode)
    if pooling is None:
        raise RunError(f"cfg.model.prediction_mode: {mode} is not supported (only MEAN_POOLING and CLS_TOKEN)")
    return {"name": names[0] if names else "", "pooling": pooling if wrapper.kind == "image-classification" else "mean"}
