"""Heads of fine-tuned checkpoints: what they are, their weights beside the encoder's, what they make of features.

A step-... directory with a head holds two more files, listed in its manifest like the others:

    head.json           ``Head``
    head.safetensors    norm.*, dense.*, classifier.*: what the head has of them
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from pretrain.errors import RunError

Kind = Literal["image-classification", "sequence-classification", "ctc"]
KINDS = {"image-classification": "image", "sequence-classification": "text", "ctc": "audio"}
"""Kind -> modality of the encoder below."""
_DESCRIPTION, _WEIGHTS = "head.json", "head.safetensors"
_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stands on the encoder."""

    kind: Kind
    name: str = ""
    """Of the task, where the file tells it."""
    num_outputs: int
    """Classes or letters."""
    labels: tuple[str, ...] = ()
    """Names of the outputs if they are known; of letters the first is <pad>, the blank."""
    pooling: Literal["mean", "first"] = "mean"
    """What an image classifier reads: the mean of the patches, or the first token."""


def write_head(folder: Path, head: Head, weights: dict[str, Tensor]) -> list[Path]:
    """Write both files; returns them."""
    description, file = folder / _DESCRIPTION, folder / _WEIGHTS
    description.write_text(json.dumps(asdict(head), indent=1) + "\n", encoding="utf-8")
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file)
    return [description, file]


def read_head(checkpoint: Path) -> tuple[Head, dict[str, Tensor]] | None:
    """The head of a step-... directory, or None if it has none.

    Raises:
        RunError: if its files are damaged.
    """
    description, file = checkpoint / _DESCRIPTION, checkpoint / _WEIGHTS
    if not description.exists():
        return None
    try:
        fields = json.loads(description.read_text(encoding="utf-8"))
        head = Head(**fields | {"labels": tuple(fields["labels"])})
        # in memory of its own, as an encoder's: matrix products round by alignment, and a mapped file's lies anywhere
        return head, {name: weight.clone() for name, weight in load_file(file).items()}
    except Exception as error:  # safetensors raises its own error type
        raise RunError(f"{description}: damaged head ({error}); import it again") from error


def needed_shapes(kind: Kind, dim: int, num_outputs: int, *, norm: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a head on an encoder of width ``dim``; ``norm``: it begins with a LayerNorm."""
    shapes: dict[str, tuple[int, ...]] = {"classifier.bias": (num_outputs,), "classifier.weight": (num_outputs, dim)}
    if kind == "sequence-classification":
        shapes |= {"dense.weight": (dim, dim), "dense.bias": (dim,)}
    if norm:
        shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    return shapes


@torch.no_grad()
def logits(
    head: Head, weights: dict[str, Tensor], features: Tensor, padding: Tensor | None, num_extra_tokens: int
) -> Tensor:
    """What a head makes of features: (B, classes), of CTC (B, T, letters).

    Args:
        head: which.
        weights: its tensors.
        features: output of the encoder (B, extra + T, D).
        padding: (B, T) bool, True for padding; None if there is none.
        num_extra_tokens: extra tokens at the front.
    """
    x = features[:, num_extra_tokens:]
    if head.kind == "ctc":
        letters = _linear(x, weights, "classifier")
        blank = torch.full((head.num_outputs,), torch.finfo(letters.dtype).min, dtype=letters.dtype)
        blank[0] = 0
        return letters if padding is None else torch.where(padding.unsqueeze(-1), blank, letters)
    if head.kind == "sequence-classification":
        return _linear(torch.tanh(_linear(x[:, 0], weights, "dense")), weights, "classifier")
    pooled = features[:, 0] if head.pooling == "first" else x.mean(dim=1)
    if "norm.weight" in weights:
        pooled = functional.layer_norm(
            pooled, pooled.shape[-1:], weights["norm.weight"], weights["norm.bias"], _NORM_EPS
        )
    return _linear(pooled, weights, "classifier")


def _linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
