"""``d2v shards info``: what shards hold, as far as their indices tell."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.shards.index import UNKNOWN_DURATION, ShardIndex, read_index
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.paths import expand_path, folder_of
from data_pipelines.tokenizers.load import load_tokenizer
from data_pipelines.transforms.text import MEMBER, count_tokens
from deploy.progress import counted, readable_bytes
from deploy.summary import readable_seconds


def describe_shards(path: str) -> list[str]:
    """Lines about all shards together.

    Args:
        path: as ``data.path``.
    Raises:
        DataError: if shards or indices cannot be used.
    """
    indices = [read_index(shard) for shard in expand_path(path)]
    sizes = [index.shard_size_bytes for index in indices]
    spread = f", {readable_bytes(min(sizes))} to {readable_bytes(max(sizes))} per shard" if len(sizes) > 1 else ""
    lines = [
        f"{path}: {counted(sum(map(len, indices)), 'sample')} in {counted(len(sizes), 'shard')}",
        f"  size     {readable_bytes(sum(sizes))}{spread}",
        *_members(indices),
        *_audio(indices),
        *_text(indices, folder_of(path)),
        _labels(indices),
    ]
    manifest = read_manifest(Path(path))
    if manifest is not None:
        lines.append(f"  made by  d2v prepare {manifest.kind} from {manifest.made_from}")
    return lines


def _members(indices: Sequence[ShardIndex]) -> list[str]:
    lines = []
    for extension in sorted({extension for index in indices for extension in index.columns}):
        columns = [index.columns[extension] for index in indices if extension in index.columns]
        number = sum(int((column.offset >= 0).sum()) for column in columns)
        total = sum(int(column.size.sum()) for column in columns)
        lines.append(f"  .{extension:<7} {counted(number, 'member')}, {readable_bytes(total)}")
    return lines


def _audio(indices: Sequence[ShardIndex]) -> list[str]:
    """How long the recordings are."""
    frames = np.concatenate([index.num_frames for index in indices])
    rates = np.concatenate([index.sample_rates for index in indices])
    lines = []
    if (frames > 0).any():
        seconds = frames[frames > 0] / rates[frames > 0]
        spread = f"{seconds.min():.1f} to {seconds.max():,.1f} s, {seconds.mean():.1f} s on average"
        lines.append(f"  audio    {readable_seconds(seconds.sum())}, {spread}")
        hertz = ", ".join(f"{rate:,}" for rate in np.unique(rates[frames > 0]))
        lines.append(f"  rate     {hertz} Hz")
    if num_unknown := int((frames == UNKNOWN_DURATION).sum()):
        lines.append(f"  audio    of unknown length in {counted(num_unknown, 'sample')} (index of an older version)")
    return lines


def _text(indices: Sequence[ShardIndex], folder: Path) -> list[str]:
    """How many tokens there are: their width follows from the vocabulary."""
    columns = [index.columns[MEMBER] for index in indices if MEMBER in index.columns]
    if not columns:
        return []
    sizes = np.concatenate([column.size[column.offset >= 0] for column in columns])
    try:
        vocab_size = load_tokenizer(folder).vocab_size
    except DataError as error:
        return [f"  text     unknown ({error})"]
    total, longest = count_tokens(sizes, vocab_size), count_tokens(sizes.max(keepdims=True), vocab_size)
    return [f"  text     {total:,} tokens in blocks of up to {longest:,}; a vocabulary of {vocab_size:,}"]


def _labels(indices: Sequence[ShardIndex]) -> str:
    labels = np.concatenate([index.labels for index in indices])
    counts = np.bincount(labels[labels >= 0])
    counts = counts[counts > 0]
    if len(counts) == 0:
        return "  labels   none"
    return f"  labels   {counted(len(counts), 'class')}, {counts.min():,} to {counts.max():,} samples each"
