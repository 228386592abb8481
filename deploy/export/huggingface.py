"""A checkpoint's encoder as a folder for transformers, compared with our own model before it appears.

OUT/
    config.json               Data2Vec2Config, with the auto_map that trust_remote_code follows
    model.safetensors         our tensors under our names; of a model with a head those of the encoder as data2vec2.*
    modeling_data2vec2.py     the model, self-contained
    preprocessor_config.json  of images and waveforms: what AutoImageProcessor and AutoFeatureExtractor read
    tokenizer.json, ...       of text and of CTC heads, where the tokens are known
    README.md                 model card with the facts of the training
"""

import gc
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

import deploy.export.registration  # noqa: F401  AutoConfig below needs it
from deploy.export.card import write_card
from deploy.export.data2vec2.modeling import INPUTS, MODEL_CLASSES
from deploy.export.encoder import chosen_modality, load_encoder, only
from deploy.export.fairseq_origin import read_origin
from deploy.export.folder import new_folder, refuse_occupied
from deploy.export.heads import Head, logits, read_head
from deploy.export.inputs import Inputs, example_inputs
from deploy.export.processors import write_processors
from deploy.export.standalone import FILE_NAME, modeling_source
from deploy.export.transformers_config import transformers_config
from model.data2vec import Data2Vec
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.progress import read_run_config
from pretrain.checkpoint.store import locate
from pretrain.errors import RunError
from pretrain.evaluate.encoder import Source

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 1e-6
"""Largest difference to our model, in fp32 arithmetic. It is 0: both do the same operations on the same numbers; the
allowance is for processors whose matrix products round by the alignment of memory."""


class Parity(NamedTuple):
    """How far an export is from our own model."""

    difference: float
    """Largest absolute difference of any output element; both compute in fp32 with the stored weights."""
    rounding: float
    """Largest absolute change of any output element from storing the weights in a smaller dtype; 0 for fp32."""
    origin: str
    """What was put through both."""

    def __str__(self) -> str:
        rounding = f"; rounding the weights moves outputs by up to {self.rounding:.2g}" if self.rounding else ""
        return f"largest difference to our model: {self.difference} on {self.origin}{rounding}"


class Result(NamedTuple):
    """What an export came to."""

    parity: Parity
    missing: str | None
    """What the folder lacks and why."""


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


def export(
    checkpoint: Path,
    out: Path,
    *,
    source: Source = "student",
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    modality: str | None = None,
    tokenizer: Path | None = None,
) -> Result:
    """Write ``out``; nothing appears there unless the reloaded export equals our model.

    Args:
        checkpoint: a run directory or one of its checkpoints, of any layout.
        out: must not exist, or be an empty folder.
        source: whose weights.
        dtype: of the stored weights.
        modality: which of a model of several.
        tokenizer: of text; None looks into the folder of the data.
    Raises:
        RunError: if the checkpoint cannot be used, ``out`` is occupied, or the outputs differ.
    """
    refuse_occupied(out)
    checkpoint = locate(checkpoint)
    config = read_run_config(checkpoint)
    modality = chosen_modality(config.model, modality)
    only_model = only(config.model, modality)
    inputs = example_inputs(only_model, config.data)
    head, weights = read_head(checkpoint) or (None, {})
    model = Model(load_encoder(checkpoint, only_model, source), head, weights)
    exact = ours = model.outputs(inputs)
    if dtype != "fp32":
        round_parameters(model, DTYPES[dtype])
        ours = model.outputs(inputs)
    with new_folder(out) as folder:
        write_model(model, DTYPES[dtype], folder)
        missing = write_processors(folder, config, modality, head, tokenizer)
        del model
        gc.collect()  # the reloaded model takes its place in memory
        parity = Parity(difference(ours, folder, modality, inputs), _largest(exact, ours), inputs.origin)
        if not parity.difference <= TOLERANCE:
            raise RunError(f"{out}: not written: {parity}; at most {TOLERANCE} is right")
        step, origin = Manifest.read(checkpoint).step, read_origin(checkpoint)
        imported = origin.name if origin else None
        write_card(folder, config, modality, head, step, source, dtype, f"{parity}", imported)
    return Result(parity, missing)


@torch.no_grad()
def round_parameters(model: Model, dtype: torch.dtype) -> None:
    """Give every parameter the value that it has when stored in ``dtype``; the model stays fp32."""
    for parameter in [*model.encoder.parameters(), *model.weights.values()]:
        parameter.copy_(parameter.to(dtype))


def write_model(model: Model, dtype: torch.dtype, folder: Path) -> None:
    """Write config.json, model.safetensors (parameters in ``dtype``, tables in fp32) and the modeling file.

    The encoder's parameters become ``dtype`` and fp32 again on the way, so that there is no second copy of them.
    """
    prefix = "data2vec2." if model.head else ""
    for parameter in model.encoder.parameters():
        parameter.data = parameter.data.to(dtype)
    tensors = {prefix + name: tensor for name, tensor in model.encoder.state_dict().items()}
    tensors |= {name: weight.to(dtype) for name, weight in model.weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for parameter in model.encoder.parameters():
        parameter.data = parameter.data.float()
    described = transformers_config(model.encoder.config, dtype, model.head, has_norm="norm.weight" in model.weights)
    described.save_pretrained(folder)
    (folder / FILE_NAME).write_text(modeling_source(), encoding="utf-8")


@torch.no_grad()
def difference(ours: list[Tensor], folder: Path, modality: str, inputs: Inputs) -> float:
    """Reload an export, in fp32, and compare what it gives with our model's outputs."""
    config = AutoConfig.from_pretrained(folder)
    kinds = {kind.__name__: kind for kind in MODEL_CLASSES.values()}
    reloaded = kinds[config.architectures[0]].from_pretrained(folder, dtype=torch.float32)
    given = {INPUTS[modality]: inputs.source}
    if inputs.attention_mask is not None:
        given["attention_mask"] = inputs.attention_mask
    output = reloaded(**given, output_hidden_states=True)
    theirs = [output.hidden_states[-1]] + ([output.logits] if "logits" in output else [])
    return _largest(ours, theirs)


def _largest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((one - other).abs().max().item() for one, other in zip(ours, theirs, strict=True))
