"""Tables computed with the reference (shared/golden without what nothing reads; origin in docs/numerics.md)."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

TABLES = Path(__file__).parent / "tables"


def optim_table() -> dict[str, Any]:
    """Adam steps and learning rates."""
    return _json("optim")


def state_dict_shapes() -> dict[str, Any]:
    """Every key and shape of the released configurations, and parameter counts."""
    return _json("state_dict_shapes")


def init_stats() -> dict[str, Any]:
    """Mean, deviation and range of every freshly initialised tensor of the base model of each modality."""
    return {name: config["params"] for name, config in _json("init_stats").items()}


def mask_stats() -> dict[str, Any]:
    """Statistics of 2000 masks per configuration; ``_seeding`` has seeds by the reference's hash rule."""
    return _json("mask_stats")


def masks_seeded() -> dict[str, Tensor]:
    """Masks drawn after ``torch.manual_seed(5)`` (blocks) or from sample ids (spans, text), and ALiBi tables."""
    return load_file(TABLES / "masks_seeded.safetensors")


def _json(name: str) -> dict[str, Any]:
    return json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
