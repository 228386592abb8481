"""The encoder as fairseq computes it, written from the facts (section 1) on fairseq's names and layouts of tensors.

No code of ours is used, so that imports can be compared with it for configurations that no golden has.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Tensors = dict[str, Tensor]


def features(model: dict[str, Any], tensors: Tensors, modality: str, source: Tensor, padded: Tensor | None) -> Tensor:
    """(B, extra + T, D) of unmasked input in eval mode.

    Args:
        model: the ``model`` section of the configuration.
        tensors: of the student.
        modality: image, audio or text.
        source: raw input.
        padded: (B, L) or (B, T) bool of the raw input, True for padding.
    """
    side, eps = model["modalities"][modality], model["norm_eps"]
    at = f"modality_encoders.{modality.upper()}."
    x = {"image": _image, "audio": _audio, "text": _text}[modality](side, tensors, at, source)
    if modality == "audio" and padded is not None:
        lengths = (~padded).sum(dim=1)
        for _, kernel, stride in eval(side["feature_encoder_spec"]):
            lengths = (lengths - kernel) // stride + 1
        padded = torch.arange(x.shape[1]) >= lengths[:, None]
    extra = side["num_extra_tokens"]
    if modality == "audio":
        x = x + _conv_positions(side, tensors, at, x)
    if extra:
        x = torch.cat([tensors[f"{at}extra_tokens"].expand(len(x), -1, -1), x], dim=1)
        padded = None if padded is None else functional.pad(padded, (extra, 0), value=False)
    if f"{at}context_encoder.norm.weight" in tensors:
        x = _norm(x, tensors, f"{at}context_encoder.norm", eps)
    names = [f"{at}context_encoder.blocks.{number}." for number in range(side["prenet_depth"])]
    names += [f"blocks.{number}." for number in range(model["depth"])]
    for number, name in enumerate(names):
        bias = _alibi(side, tensors, at, x.shape[1], model["num_heads"], number)
        if padded is not None:
            bias = bias.masked_fill(padded[:, None, None, :], -math.inf)
        x = _block(x, tensors, name, model["num_heads"], eps, bias)
    return x


def _image(side: dict[str, Any], tensors: Tensors, at: str, source: Tensor) -> Tensor:
    weight, bias = tensors[f"{at}local_encoder.proj.weight"], tensors[f"{at}local_encoder.proj.bias"]
    patches = functional.conv2d(source, weight, bias, stride=side["patch_size"]).flatten(2).transpose(1, 2)
    return patches + tensors[f"{at}fixed_positional_encoder.positions"]


def _audio(side: dict[str, Any], tensors: Tensors, at: str, source: Tensor) -> Tensor:
    x = source[:, None]
    for number, (dim, _, stride) in enumerate(eval(side["feature_encoder_spec"])):
        name = f"{at}local_encoder.conv_layers.{number}."
        x = functional.conv1d(x, tensors[f"{name}0.weight"], stride=stride).transpose(1, 2)
        x = functional.gelu(_norm(x, tensors, f"{name}2.1", 1e-5)).transpose(1, 2)
        assert x.shape[1] == dim
    return _linear(
        _norm(x.transpose(1, 2), tensors, f"{at}project_features.1", 1e-5), tensors, f"{at}project_features.2"
    )


def _conv_positions(side: dict[str, Any], tensors: Tensors, at: str, x: Tensor) -> Tensor:
    kernel = max(3, side["conv_pos_width"] // side["conv_pos_depth"])
    y = x.transpose(1, 2)
    for number in range(side["conv_pos_depth"]):
        name = f"{at}relative_positional_encoder.{number + 1}.0."
        weight, bias = tensors[f"{name}weight"], tensors[f"{name}bias"]
        y = functional.conv1d(y, weight, bias, padding=kernel // 2, groups=side["conv_pos_groups"])
        y = y[..., :-1] if kernel % 2 == 0 else y
        y = functional.gelu(functional.layer_norm(y.transpose(1, 2), y.shape[1:2], eps=1e-5).transpose(1, 2))
    return y.transpose(1, 2)


def _text(side: dict[str, Any], tensors: Tensors, at: str, source: Tensor) -> Tensor:
    real = source != 1
    places = torch.where(real, real.cumsum(dim=1) + 1, 1)
    embedded = tensors[f"{at}local_encoder.embed_tokens.weight"][source]
    embedded = embedded + tensors[f"{at}local_encoder.embed_positions.weight"][places]
    return _norm(embedded, tensors, f"{at}local_encoder.layernorm_embedding", 1e-5)


def _alibi(side: dict[str, Any], tensors: Tensors, at: str, num_tokens: int, heads: int, block: int) -> Tensor:
    """(1, H, ex + T, ex + T)."""
    if not side["use_alibi_encoder"]:
        return torch.zeros(1, 1, num_tokens, num_tokens)
    extra = side["num_extra_tokens"]
    places = torch.arange(num_tokens - extra)
    if "patch_size" in side:
        width = side["input_size"] // side["patch_size"]
        places = torch.stack([places // width, places % width])
        apart = (places[:, :, None] - places[:, None]).abs().float()
        away = apart.sum(dim=0) if side["alibi_distance"] == "manhattan" else apart.square().sum(dim=0).sqrt()
    else:
        away = (places[:, None] - places).abs().float()
    bias = -torch.tensor(_slopes(heads))[:, None, None] * away
    bias = functional.pad(bias, (extra, 0, extra, 0))[None]
    scale = tensors[f"{at}alibi_scale"]
    scale = scale if scale.dim() == 5 else scale[None]
    return bias * scale[block if len(scale) > 1 else 0].clamp_min(0)


def _slopes(heads: int) -> list[float]:
    def of_power(count: int) -> list[float]:
        return [2 ** (-8 * (number + 1) / count) for number in range(count)]

    power = 2 ** math.floor(math.log2(heads))
    return of_power(power) + of_power(2 * power)[0::2][: heads - power]


def _block(x: Tensor, tensors: Tensors, name: str, heads: int, eps: float, bias: Tensor) -> Tensor:
    batch, num_tokens, dim = x.shape
    packed = _linear(x, tensors, f"{name}attn.qkv").view(batch, num_tokens, 3, heads, dim // heads)
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    weights = (query * (dim // heads) ** -0.5 @ key.transpose(-2, -1) + bias).softmax(dim=-1)
    attended = (weights @ value).transpose(1, 2).reshape(x.shape)
    hidden = _norm(x + _linear(attended, tensors, f"{name}attn.proj"), tensors, f"{name}norm1", eps)
    inner = functional.gelu(_linear(hidden, tensors, f"{name}mlp.fc1"))
    return _norm(hidden + _linear(inner, tensors, f"{name}mlp.fc2"), tensors, f"{name}norm2", eps)


def _linear(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _norm(x: Tensor, tensors: Tensors, name: str, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)
