"""Initial weights, drawn on the CPU; the seed and a module's name decide them (facts section 1.10)."""

import hashlib
import math
from collections.abc import Container

import torch
from torch import Tensor, nn

from model.config import PADDING_ID
from model.convolution import ConvLayer1d, ConvLayer2d
from model.data2vec import Data2Vec
from model.linear import EmbeddingPart, LinearPart, cut_of, whole_shape
from model.modalities.audio import FeatureLayer
from model.modalities.base import Frontend
from model.modalities.image import Patches

_RESET = ("decoders.image.projection", "decoders.audio.projection", "audio.local.projection", "reconstruction")
"""Linears that the reference resets to torch's default after its "BERT init"; it forgets the decoder of text."""


@torch.no_grad()
def initialize(model: Data2Vec, seed: int, modules: Container[nn.Module] | None = None) -> None:
    """Draw every parameter: the reference's "BERT init" with its later resets.

    A parameter that is a part of a whole gets its part of what the whole would be, and a module that other pipeline
    stages have draws nothing here, so that the weights do not depend on how the model is cut.

    Args:
        model: on the CPU.
        seed: of the run.
        modules: whose parameters to draw; None for all. A module comes with those inside it.
    """
    generator = torch.Generator()
    std = model.config.encoder.init_std
    for name, module in model.named_modules():
        if modules is not None and module not in modules:
            continue
        generator.manual_seed(_key(seed, name))
        if isinstance(module, Frontend):
            _frontend(module, model, name.rpartition(".")[2], generator)
        elif isinstance(module, ConvLayer1d | ConvLayer2d):
            _torch_default(module, generator)
        elif isinstance(module, Patches):
            _patches(module, generator)
        elif isinstance(module, FeatureLayer):
            weight = module.convolution.weight
            weight.normal_(0.0, math.sqrt(2 / weight[0].numel()), generator=generator)  # kaiming, fan in
        elif isinstance(module, nn.Linear) and name.rstrip(".0123456789").endswith(_RESET):  # one of several, too
            _torch_default(module, generator)
        elif isinstance(module, nn.Linear | LinearPart):
            _normal(module.weight, std, generator)
            module.bias.zero_()
        elif isinstance(module, nn.Embedding | EmbeddingPart):
            _normal(module.weight, std, generator, zero_row=PADDING_ID)
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest())


def _normal(weight: Tensor, std: float, generator: torch.Generator, zero_row: int | None = None) -> None:
    whole = torch.empty(whole_shape(weight)).normal_(0.0, std, generator=generator)
    if zero_row is not None:
        whole[zero_row] = 0
    cut = cut_of(weight)
    part = whole if cut is None else cut.of(whole)
    weight.zero_()  # beyond a last, shorter part lies padding
    weight[: len(part)] = part


def _frontend(frontend: Frontend, model: Data2Vec, modality: str, generator: torch.Generator) -> None:
    config = model.config.modalities[modality]
    if config.num_extra_tokens:
        frontend.extra_tokens.normal_(generator=generator)
        if config.extra_tokens_zero_init:
            frontend.extra_tokens[:, 0] = 0
    if config.alibi is not None:
        frontend.alibi_scale.fill_(config.alibi.scale)


def _patches(patches: Patches, generator: torch.Generator) -> None:
    """Xavier-uniform on the (out, in * patch^2) matrix; the bias keeps torch's default."""
    fan_in, fan_out = patches.weight[0].numel(), patches.weight.shape[0]
    _uniform(patches.weight, math.sqrt(6 / (fan_in + fan_out)), generator)
    assert patches.bias is not None
    _uniform(patches.bias, 1 / math.sqrt(fan_in), generator)


def _torch_default(module: nn.Conv1d | nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """torch's own default for Linear and Conv: both uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(module.weight[0].numel())
    _uniform(module.weight, bound, generator)
    assert module.bias is not None
    _uniform(module.bias, bound, generator)


def _uniform(tensor: Tensor, bound: float, generator: torch.Generator) -> None:
    tensor.uniform_(-bound, bound, generator=generator)
