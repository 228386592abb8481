"""Random inputs of small models, for the tests of this folder."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.data2vec import Data2Vec
from model.initialization import initialize
from model.masking import Views, split_views
from pretrain.masking import masking_of
from pretrain.recipes.registry import recipe

MODALITIES = ("image", "audio", "text")
LENGTHS = {"image": 0, "audio": 5_000, "text": 24}
"""Of the raw input; an image has a fixed one."""


def tiny(modality: str, **side: Any) -> ModelConfig:
    """The tiny recipe's model of one modality, with changes of its side."""
    config = recipe(f"{modality}-tiny").model
    return dataclasses.replace(config, **{modality: dataclasses.replace(config.modalities[modality], **side)})


def initialized(config: ModelConfig) -> Data2Vec:
    model = Data2Vec(config)
    initialize(model, 0)
    return model


def shaken(config: ModelConfig, seed: int = 1) -> Data2Vec:
    """In fp64, and every parameter moved off its initial value, so that none is trivial."""
    model, generator = initialized(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.double()


def another_teacher(config: ModelConfig) -> Data2Vec:
    """A teacher in fp64 whose weights are not the student's."""
    teacher, weights = Data2Vec(config, role="teacher").double(), shaken(config, seed=9).state_dict()
    teacher.load_state_dict({name: weights[name] for name in teacher.state_dict()})
    return teacher


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One batch of B samples."""

    source: Tensor
    masks: Tensor
    """(B, M, T)."""
    noise: Tensor
    """(B, M, R, D)."""
    padding: Tensor | None
    """(B, T)."""

    @property
    def views(self) -> Views:
        return split_views(self.masks, self.masks.shape[2] - self.noise.shape[2])

    def double(self) -> "Inputs":
        """In fp64, what is not token numbers."""
        source = self.source.double() if self.source.is_floating_point() else self.source
        return dataclasses.replace(self, source=source, noise=self.noise.double())

    def part(self, samples: slice) -> "Inputs":
        """Some of the samples."""
        padding = None if self.padding is None else self.padding[samples]
        return Inputs(self.source[samples], self.masks[samples], self.noise[samples], padding)

    def student(self, model: Data2Vec, modality: str, **options: Any) -> Any:
        """The student's output."""
        noise = self.noise.flatten(0, 1)
        return model(self.source, self.views, noise, modality=modality, padding=self.padding, **options)


def inputs(config: ModelConfig, modality: str, *, num_samples: int = 4, padded: bool = False, seed: int = 0) -> Inputs:
    """A batch; with ``padded`` every second sample ends early."""
    side, generator = config.modalities[modality], torch.Generator().manual_seed(seed)
    length = LENGTHS[modality]
    lengths = [length if number % 2 == 0 or not padded else 3 * length // 4 for number in range(num_samples)]
    shape = (num_samples, length)
    if isinstance(side, ImageConfig):
        shape = (num_samples, side.in_channels, side.image_size, side.image_size)
    if isinstance(side, TextConfig):
        source = torch.randint(4, side.vocab_size, shape, generator=generator)
    else:
        source = torch.randn(shape, generator=generator)
    masking = masking_of(config, modality)
    masks = masking.masks(range(seed, seed + num_samples), [length] * num_samples)
    padding = None
    if padded:
        beyond = torch.arange(length) >= torch.tensor(lengths).unsqueeze(1)
        source = source.masked_fill(beyond, 1 if isinstance(side, TextConfig) else 0)
        tokens = [masking.num_tokens(valid) if isinstance(side, AudioConfig) else valid for valid in lengths]
        padding = torch.arange(masks.shape[2]) >= torch.tensor(tokens).unsqueeze(1)
    noise = side.decoder.noise_std * torch.randn(
        *masks.shape[:2], int(masks[0, 0].sum()), config.encoder.dim, generator=generator
    )
    return Inputs(source, masks, noise, padding)
