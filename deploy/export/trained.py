"""What is exported: a checkpoint's encoder, and what stands on it; what they compute, and what they compute it of."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from deploy.export.encoder import chosen_modality, load_encoder, only
from deploy.export.fairseq_origin import read_origin
from deploy.export.heads import Head, logits, read_head
from deploy.export.inputs import Inputs, example_inputs
from model.data2vec import Data2Vec
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.progress import read_run_config
from pretrain.checkpoint.store import locate
from pretrain.config import RunConfig
from pretrain.evaluate.encoder import Source

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Parity(NamedTuple):
    """How far an export is from our own model."""

    difference: float
    """Largest absolute difference of any output element; ours has the exported weights, as they are stored."""
    rounding: float
    """Largest absolute change of any output element from the smaller dtype; 0 for fp32."""
    origin: str
    """What was put through both."""

    def __str__(self) -> str:
        rounding = f"; rounding to the smaller type moves outputs by up to {self.rounding:.2g}" if self.rounding else ""
        return f"largest difference to our model: {self.difference} on {self.origin}{rounding}"


class Model(NamedTuple):
    """Our own model: an encoder, and what stands on it."""

    encoder: Data2Vec
    head: Head | None
    weights: dict[str, Tensor]
    """Of the head."""

    @torch.no_grad()
    def outputs(self, inputs: Inputs) -> list[Tensor]:
        """Features (B, extra + T, D); with a head its logits too."""
        ((modality, side),) = self.encoder.config.modalities.items()
        features = self.encoder.features(inputs.source, modality=modality, padding=inputs.padding)
        if self.head is None:
            return [features]
        return [features, logits(self.head, self.weights, features, inputs.padding, side.num_extra_tokens)]

    @torch.no_grad()
    def round(self, dtype: torch.dtype) -> None:
        """Give every parameter the value that it has when stored in ``dtype``; the model stays fp32."""
        for parameter in [*self.encoder.parameters(), *self.weights.values()]:
            parameter.copy_(parameter.to(dtype))


class Facts(NamedTuple):
    """What exports tell of a checkpoint, and what they are compared on."""

    config: RunConfig
    """Of the whole run."""
    modality: str
    source: Source
    step: int
    imported: str | None
    """Name of the file that the weights come from, if they were trained elsewhere."""
    inputs: Inputs
    """What goes through both models."""


def load(checkpoint: Path, source: Source, modality: str | None) -> tuple[Model, Facts]:
    """Read one modality of a checkpoint.

    Args:
        checkpoint: a run directory or one of its checkpoints, of any layout.
        source: whose weights.
        modality: which of a model of several.
    Raises:
        RunError: if it cannot be used, or does not have the modality.
    """
    checkpoint = locate(checkpoint)
    config = read_run_config(checkpoint)
    modality = chosen_modality(config.model, modality)
    only_model = only(config.model, modality)
    head, weights = read_head(checkpoint) or (None, {})
    origin = read_origin(checkpoint)
    facts = Facts(
        config=config,
        modality=modality,
        source=source,
        step=Manifest.read(checkpoint).step,
        imported=origin.name if origin else None,
        inputs=example_inputs(only_model, config.data),
    )
    return Model(load_encoder(checkpoint, only_model, source), head, weights), facts


def largest_difference(inputs: Inputs, some: list[Tensor], others: list[Tensor]) -> float:
    """Of any element of outputs for ``inputs`` that is not of padding; infinite numbers count, and what is no number.

    Padding is left out because a CTC head gives blanks there, whose size is that of the type which computes them.
    """
    pairs = zip(some, others, strict=True)
    found = [(inputs.real(one).double() - inputs.real(other).double()).abs().max() for one, other in pairs]
    return torch.stack(found).max().item()  # Python's own would skip a NaN
