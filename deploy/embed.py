"""``d2v embed``: features of images, recordings and texts as a file."""

import argparse
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.arguments import positive_int
from deploy.progress import Progress, counted
from pretrain.errors import RunError

if TYPE_CHECKING:
    from data_pipelines.tokenizers.base import Tokenizer
    from deploy.embedding.checkpoint import Checkpoint
    from deploy.embedding.encode import Counts
    from deploy.embedding.items import Item
    from deploy.embedding.rows import Rows

_NOUNS = {"image": "image", "audio": "recording", "text": "text"}
_SUFFIXES = (".npz", ".safetensors", ".parquet")
_MOST_REASONS = 5
_MOST_WORKERS = 8
"""By default: each holds some decoded items."""


def main(argv: list[str]) -> int:
    """Encode, write, and print what was left out; returns the exit status."""
    arguments = parser().parse_args(argv)
    out: Path = arguments.out
    if out.suffix not in _SUFFIXES:
        raise RunError(f"--out {out}: must end in {', '.join(_SUFFIXES)}")
    if not out.parent.is_dir():
        raise RunError(f"--out {out}: there is no folder {out.parent}")

    from data_pipelines.errors import DataError
    from deploy.embedding.checkpoint import open_checkpoint
    from deploy.embedding.encode import Embedder, embed
    from deploy.embedding.files import require_room, writing
    from deploy.embedding.inputs import Decoder
    from deploy.embedding.items import find_items
    from deploy.evaluate import chosen_device

    device = chosen_device(arguments.device)
    checkpoint = open_checkpoint(arguments.checkpoint, arguments.modality, arguments.source)
    model, modality = checkpoint.model, checkpoint.modality
    items = find_items(arguments.inputs, modality, lines=arguments.lines)
    require_room(out, (item.key for item in items))
    tokenizer = _tokenizer(items, checkpoint, arguments.tokenizer) if modality == "text" else None
    decoder = Decoder(model.modalities[modality], checkpoint.source, tokenizer)
    embedder = Embedder(checkpoint.load(), device, per_token=arguments.tokens)
    with (
        writing(out, per_token=arguments.tokens) as rows,
        closing(decoder.over(items, arguments.workers)) as decoded,
        Progress("embed", len(items), f"{_NOUNS[modality]}s") as progress,
    ):
        counts = embed(decoded, embedder, arguments.batch_size, rows, progress)
        if not rows:
            raise DataError(f"nothing to write: {_left_out(counts)}")
    print(f"embed: {out} ({_summary(rows, counts, modality)})")
    return 0


def _tokenizer(items: "list[Item]", checkpoint: "Checkpoint", place: Path | None) -> "Tokenizer | None":
    """The tokenizer of texts outside of shards, if there are any.

    Raises:
        DataError: if there is none.
        RunError: if it is not the model's.
    """
    from data_pipelines.tokenizers.load import load_tokenizer

    if all(item.in_shard for item in items):
        return None
    tokenizer = load_tokenizer(place or checkpoint.tokenizer())
    assert checkpoint.model.text is not None
    known = checkpoint.model.text.vocab_size
    if tokenizer.vocab_size > known:
        raise RunError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model knows {known:,}; "
            "--tokenizer names another one"
        )
    return tokenizer


def _summary(rows: "Rows", counts: "Counts", modality: str) -> str:
    parts = [f"{counted(len(rows), _NOUNS[modality])}, {rows.width} numbers each"]
    if rows.per_token:
        parts = [f"{parts[0]} of {rows.num_vectors:,} tokens"]
    if counts.num_cut:
        parts.append(f"{counted(counts.num_cut, 'text')} cut to the model's length")
    return "; ".join([*parts, *([_left_out(counts)] if counts.left_out else [])])


def _left_out(counts: "Counts") -> str:
    reasons = [
        f"{count:,} {reason} ({counts.examples[reason]})"
        for reason, count in counts.left_out.most_common(_MOST_REASONS)
    ]
    more = len(counts.left_out) - len(reasons)
    return f"{counts.left_out.total():,} left out: " + ", ".join(
        [*reasons, *([f"{more} more reasons"] if more else [])]
    )


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v embed``."""
    parser = argparse.ArgumentParser(
        prog="d2v embed",
        description="Features of the last block: the mean over patches, frames or tokens, or each of them.",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="run directory, one of its checkpoints, or a folder of 'd2v export hf'",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders of files, or shards")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"ends in {', '.join(_SUFFIXES)}")
    parser.add_argument("--tokens", action="store_true", help="one vector per patch, frame or token")
    parser.add_argument("--source", choices=("student", "teacher"), help="default: student")
    parser.add_argument("--modality", choices=tuple(_NOUNS), help="which of a run of several")
    parser.add_argument("--lines", action="store_true", help="every line of a text file is a text")
    parser.add_argument("--tokenizer", type=Path, help="of text: folder or file; default: the folder of the data")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="encoded at once; default: 32")
    workers = min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
    help_of_workers = f"processes that read and decode; default: one per core, at most {_MOST_WORKERS}"
    parser.add_argument("--workers", type=positive_int, default=workers, help=help_of_workers)
    parser.add_argument("--device", help="torch device; default: the accelerator if there is one, else cpu")
    return parser
