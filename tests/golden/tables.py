"""Tables computed with the reference (the image parts of shared/golden; origin in docs/numerics.md)."""

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
    """Every key and shape of the released image configurations, and parameter counts."""
    return _json("state_dict_shapes")


def init_stats() -> dict[str, Any]:
    """Mean, deviation and range of every freshly initialised tensor of the base image model."""
    return _json("init_stats")["base_images_only_task"]["params"]


def mask_stats() -> dict[str, Any]:
    """Statistics of 2000 masks per image configuration."""
    return _json("mask_stats")


def masks_seeded() -> dict[str, Tensor]:
    """Masks drawn after ``torch.manual_seed(5)``, and 2-D ALiBi tables."""
    return load_file(TABLES / "masks_seeded.safetensors")


def _json(name: str) -> dict[str, Any]:
    return json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
