"""How good frozen features are: the trained encoder against the untrained one and against raw pixels."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_pipelines.loader import labelled_images
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.progress import read_run_config
from pretrain.checkpoint.store import locate
from pretrain.config import RunConfig
from pretrain.evaluate.encoder import Source, pooled, trained_encoder, untrained_encoder
from pretrain.evaluate.features import Encode, Features, extract, pixels, standardise
from pretrain.evaluate.protocols import Protocol


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Accuracies (shares of the test images) under one protocol, and what they were measured on."""

    protocol: str
    title: str
    settings: dict[str, Any]
    """Name, title and settings of the protocol."""
    checkpoint: str
    step: int
    source: Source
    bank: str
    test: str
    num_bank: int
    num_test: int
    num_classes: int
    chance: float
    """Accuracy of guessing: 1 / classes."""
    pixels: float | None
    """None without baselines."""
    pixels_treatment: str | None
    """``standardised`` or ``plain``, whichever is quoted."""
    untrained: float | None
    """None without baselines."""
    trained: float


def compare(
    checkpoint: Path,
    bank: str,
    test: str,
    protocols: Sequence[Protocol],
    *,
    device: torch.device,
    source: Source = "student",
    baselines: bool = True,
    batch_size: int = 256,
) -> list[Comparison]:
    """Judge a checkpoint by every protocol; images are read and encoded once for all of them.

    Args:
        checkpoint: a run directory or one of its checkpoints.
        bank: shards of labelled images to learn from (or to be neighbours).
        test: shards of labelled images to classify.
        protocols: how the features are judged.
        device: where encoders and protocols run.
        source: whose weights.
        baselines: also judge the untrained encoder and raw pixels.
        batch_size: images encoded at once.
    Returns:
        One comparison per protocol, in their order.
    Raises:
        RunError: if the checkpoint cannot be used.
        DataError: if the shards cannot be used, or carry no labels.
    """
    checkpoint = locate(checkpoint)
    config = read_run_config(checkpoint)
    encoders: dict[str, Encode] = {"trained": pooled(trained_encoder(checkpoint, source).to(device))}
    if baselines:
        encoders |= {"untrained": pooled(untrained_encoder(config).to(device)), "pixels": pixels}
    bank_features = _features(config, bank, encoders, batch_size, device)
    test_features = _features(config, test, encoders, batch_size, device)
    num_classes = len(bank_features.labels.unique())
    return [
        Comparison(
            protocol=protocol.name,
            title=protocol.title,
            settings=protocol.settings,
            checkpoint=str(checkpoint),
            step=Manifest.read(checkpoint).step,
            source=source,
            bank=bank,
            test=test,
            num_bank=len(bank_features.labels),
            num_test=len(test_features.labels),
            num_classes=num_classes,
            chance=1 / num_classes,
            **accuracies(protocol, bank_features, test_features, device),
        )
        for protocol in protocols
    ]


def _features(
    config: RunConfig, path: str, encoders: dict[str, Encode], batch_size: int, device: torch.device
) -> Features:
    with closing(labelled_images(config.data, path, batch_size)) as batches:
        return extract(encoders, tqdm(batches, desc=f"encode {path}", unit="batch", disable=None), device)


def accuracies(protocol: Protocol, bank: Features, test: Features, device: torch.device) -> dict[str, Any]:
    """The fields of a comparison that hold accuracies.

    Args:
        protocol: how to judge.
        bank: by encoder ``trained`` and, for the baselines, ``untrained`` and ``pixels``.
        test: of the same encoders.
        device: where the protocol runs.
    """
    labels, test_labels = bank.labels.to(device), test.labels.to(device)

    def judge(name: str, treatment: str = "standardised") -> float:
        values = bank.values[name].to(device), test.values[name].to(device)
        seen, unseen = standardise(*values) if treatment == "standardised" else values
        return protocol.measure(seen, labels, unseen, test_labels)

    found: dict[str, Any] = {"trained": judge("trained")}
    if "pixels" not in bank.values:
        return found | {"untrained": None, "pixels": None, "pixels_treatment": None}
    treatments = ("standardised", "plain") if protocol.plain_pixels else ("standardised",)
    best, treatment = max((judge("pixels", treatment), treatment) for treatment in treatments)
    return found | {"untrained": judge("untrained"), "pixels": best, "pixels_treatment": treatment}
