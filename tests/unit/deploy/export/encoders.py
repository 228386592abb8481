"""Our own encoders of all modalities with weights that no layer leaves without effect, and batches for them."""

import torch
from torch import Tensor

from deploy.export.heads import Head, Kind
from deploy.export.inputs import Inputs, example_inputs
from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.data2vec import Data2Vec
from model.initialization import initialize
from model.sections import AlibiConfig, DecoderConfig, EncoderConfig, MaskConfig, TargetConfig
from pretrain.recipes.registry import RECIPES

ENCODER = EncoderConfig(depth=2, dim=24, num_heads=3)  # three is no power of two
NUM_OUTPUTS = 5
_COMMON = {"target": TargetConfig(top_k=2), "decoder": DecoderConfig(dim=16, groups=4)}


def image(**fields: object) -> ModelConfig:
    usual = {"image_size": 48, "patch_size": 8, "prenet_depth": 2, "num_extra_tokens": 1}
    return ModelConfig(encoder=ENCODER, image=ImageConfig(**_COMMON | usual | fields))  # type: ignore[arg-type]


def audio(**fields: object) -> ModelConfig:
    usual = {"conv_layers": ((12, 20, 20), (8, 10, 8)), "positions_groups": 4, "prenet_depth": 1}
    return ModelConfig(encoder=ENCODER, audio=AudioConfig(**_COMMON | usual | fields))  # type: ignore[arg-type]


def text(**fields: object) -> ModelConfig:
    usual = {"vocab_size": 50, "max_positions": 20, "mask": MaskConfig(kind="random", length=1)}
    return ModelConfig(encoder=ENCODER, text=TextConfig(**_COMMON | usual | fields))  # type: ignore[arg-type]


CONFIGS = {
    "image": image(),
    "image-tiny": RECIPES["image-tiny"]().model,
    "image-no-extra-token": image(num_extra_tokens=0, prenet_depth=0),
    "image-alibi": image(num_extra_tokens=2, alibi=AlibiConfig(per_layer=True)),
    "image-alibi-shared": image(alibi=AlibiConfig(distance="euclidean", per_head=False, learned=False)),
    "audio": audio(alibi=AlibiConfig()),
    "audio-tiny": RECIPES["audio-tiny"]().model,
    "audio-even-kernel": audio(prenet_depth=0, positions_width=4 * 5, num_extra_tokens=2),
    "audio-alibi-per-layer": audio(alibi=AlibiConfig(per_layer=True, per_head=False)),
    "text": text(),
    "text-prenet": text(prenet_depth=1, num_extra_tokens=1, alibi=AlibiConfig()),
}


def random_encoder(config: ModelConfig) -> Data2Vec:
    """Every parameter differs from its initial value, norms and biases too."""
    encoder = Data2Vec(config, role="encoder")
    initialize(encoder, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return encoder.eval()


def batch(config: ModelConfig) -> Inputs:
    """Four random samples of different length, padded."""
    (modality,) = config.modalities
    return example_inputs(config, RECIPES[f"{modality}-tiny"]().data)


def head_of(kind: Kind, *, norm: bool = True, pooling: str = "mean") -> tuple[Head, dict[str, Tensor]]:
    """A head with random weights for an encoder of ``ENCODER``."""
    dim = ENCODER.dim
    shapes: dict[str, tuple[int, ...]] = {"classifier.weight": (NUM_OUTPUTS, dim), "classifier.bias": (NUM_OUTPUTS,)}
    if kind == "image-classification" and norm:
        shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    if kind == "sequence-classification":
        shapes |= {"dense.weight": (dim, dim), "dense.bias": (dim,)}
    generator = torch.Generator().manual_seed(5)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return Head(kind=kind, num_outputs=NUM_OUTPUTS, pooling=pooling), weights  # type: ignore[arg-type]
