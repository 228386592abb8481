"""What ``d2v embed`` encodes with: a run, one of its checkpoints, or an exported folder."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data_pipelines.config import SourceConfig
from data_pipelines.shards.paths import folder_of
from deploy.export.encoder import chosen_modality, load_encoder, only
from deploy.export.exported import is_exported, load_exported, read_config
from model.config import ModelConfig
from model.data2vec import Data2Vec
from pretrain.checkpoint.progress import read_run_config
from pretrain.checkpoint.store import locate
from pretrain.errors import RunError
from pretrain.evaluate.encoder import Source


class Checkpoint(NamedTuple):
    """An encoder of one modality."""

    model: ModelConfig
    modality: str
    source: SourceConfig
    """How its inputs are made."""
    tokenizer: Callable[[], Path]
    """Where that of a text encoder should lie; raises DataError if nothing says."""
    load: Callable[[], Data2Vec]


def open_checkpoint(path: Path, asked: str | None, source: Source | None) -> Checkpoint:
    """Read everything but the weights.

    Args:
        path: a run directory, one of its checkpoints, or a folder of ``d2v export hf``.
        asked: modality of a run of several.
        source: whose weights, None for the student's; an exported folder has those that it was made with.
    Raises:
        RunError: if it cannot be used, or lacks the modality.
    """
    if is_exported(path):
        model, how = read_config(path)
        modality = chosen_modality(model, asked)
        if source is not None:
            raise RunError(f"--source: {path} holds one encoder, chosen by 'd2v export hf --source'; leave it out here")
        return Checkpoint(model, modality, how, lambda: path, lambda: load_exported(path, model))
    checkpoint = locate(path)
    config = read_run_config(checkpoint)
    modality = chosen_modality(config.model, asked)
    model = only(config.model, modality)
    return Checkpoint(
        model,
        modality,
        config.data.sources[modality],
        lambda: folder_of(config.data.path_of(modality)),
        lambda: load_encoder(checkpoint, model, source or "student"),
    )
