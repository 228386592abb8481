"""Initial weights, drawn on the CPU from one seed in the order of the parameters' names (facts section 1.10)."""

import math

import torch
from torch import Tensor, nn

from model.data2vec import Data2Vec
from model.decoder import ConvLayer2d
from model.modalities.base import Frontend

_RESET = ("decoders.image.projection", "reconstruction")
"""Linears that the reference resets to torch's default after its "BERT init"."""


@torch.no_grad()
def initialize(model: Data2Vec, seed: int) -> None:
    """Draw every parameter: the reference's "BERT init" with its later resets.

    Args:
        model: on the CPU.
        seed: of the run.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, Frontend):
            _frontend(module, model, generator)
        elif isinstance(module, ConvLayer2d) or (isinstance(module, nn.Linear) and name.endswith(_RESET)):
            _torch_default(module, generator)
        elif isinstance(module, nn.Conv2d):  # the patch embedding
            fan_in, fan_out = module.weight[0].numel(), module.weight.shape[0]
            _uniform(module.weight, math.sqrt(6 / (fan_in + fan_out)), generator)
            assert module.bias is not None
            _uniform(module.bias, 1 / math.sqrt(fan_in), generator)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0.0, model.config.encoder.init_std, generator=generator)
            module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()


def _frontend(frontend: Frontend, model: Data2Vec, generator: torch.Generator) -> None:
    if frontend.num_extra_tokens:
        frontend.extra_tokens.normal_(generator=generator)
        if model.config.image.extra_tokens_zero_init:
            frontend.extra_tokens[:, 0] = 0
    if hasattr(frontend, "alibi_scale"):
        assert model.config.image.alibi is not None
        frontend.alibi_scale.fill_(model.config.image.alibi.scale)


def _torch_default(module: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """torch's own default for Linear and Conv: both uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(module.weight[0].numel())
    _uniform(module.weight, bound, generator)
    assert module.bias is not None
    _uniform(module.bias, bound, generator)


def _uniform(tensor: Tensor, bound: float, generator: torch.Generator) -> None:
    tensor.uniform_(-bound, bound, generator=generator)
