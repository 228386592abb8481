"""A recipe as a table of dotted fields."""

import dataclasses
from typing import Any

from pretrain.config import RunConfig

LEARNS = ("model", "data", "optim", "schedule", "ema", "precision", "training", "checkpoint", "health")
"""Sections whose every field a recipe's table names."""
NO_OTHER_MODALITY = {"model.image": None, "model.audio": None, "model.text": None} | {
    "data.image": None,
    "data.audio": None,
    "data.text": None,
}
OWN_SOURCE = {"path": "", "batch_size": None, "microbatch_size": None}
"""Of a run of one modality: what it reads and its batches are those of the whole run."""


def fields(config: RunConfig) -> dict[str, Any]:
    """Every field of the sections that decide what is learned, by dotted name."""
    return _flat({name: dataclasses.asdict(getattr(config, name)) for name in LEARNS}, "")


def under(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """A table with a prefix before its names."""
    return {f"{prefix}.{name}": value for name, value in values.items()}


def differing(config: RunConfig, expected: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that are not as expected, or are in one of both only: (found, expected)."""
    found = fields(config)
    return {
        name: (found.get(name, "no such field"), expected.get(name, "not in the table"))
        for name in found | expected
        if name not in found or name not in expected or found[name] != expected[name]
    }


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
