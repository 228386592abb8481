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
from deploy.export.data2vec2.modeling import MODEL_CLASSES
from deploy.export.folder import new_folder, refuse_occupied
from deploy.export.inputs import Inputs
from deploy.export.processors import write_processors
from deploy.export.trained import DTYPES, Model, Parity, largest_difference, load
from deploy.export.transformers_config import transformers_config
from pretrain.errors import RunError
from pretrain.evaluate.encoder import Source

TOLERANCE = 1e-6
"""Largest difference to our model, in fp32 arithmetic. It is 0: both do the same operations on the same numbers; the
allowance is for processors whose matrix products round by the alignment of memory."""


class Result(NamedTuple):
    """What an export came to."""

    parity: Parity
    missing: str | None
    """What the folder lacks and why."""


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
    model, facts = load(checkpoint, source, modality)
    inputs, head = facts.inputs, model.head
    exact = ours = model.outputs(inputs)
    if dtype != "fp32":
        model.round(DTYPES[dtype])
        ours = model.outputs(inputs)
    with new_folder(out) as folder:
        write_model(model, DTYPES[dtype], folder)
        missing = write_processors(folder, facts.config, facts.modality, head, tokenizer)
        del model
        gc.collect()  # the reloaded model takes its place in memory
        found = difference(ours, folder, facts.modality, inputs)
        parity = Parity(found, largest_difference(inputs, exact, ours), inputs.origin)
        if not parity.difference <= TOLERANCE:
            raise RunError(f"{out}: not written: {parity}; at most {TOLERANCE} is right")
        write_card(folder, facts, head, dtype, f"{parity}")
    return Result(parity, missing)


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


@torch.no_grad()
def difference(ours: list[Tensor], folder: Path, modality: str, inputs: Inputs) -> float:
    """Reload an export, in fp32, and compare what it gives with our model's outputs."""
    config = AutoConfig.from_pretrained(folder)
    kinds = {kind.__name__: kind for kind in MODEL_CLASSES.values()}
    reloaded = kinds[config.architectures[0]].from_pretrained(folder, dtype=torch.float32)
    given = inputs.given(modality)
    bare = getattr(reloaded, reloaded.base_model_prefix, reloaded)
    theirs = [bare(**given).last_hidden_state]
    if bare is not reloaded:
        theirs.append(reloaded(**given).logits)
    return largest_difference(inputs, ours, theirs)
