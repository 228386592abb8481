"""``d2v embed``: features of images, recordings and texts as a file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.arguments import positive_int
from deploy.progress import Progress, counted
from pretrain.errors import RunError

if TYPE_CHECKING:
    from data_pipelines.tokenizers.base import Tokenizer
    from deploy.embedding.encode import Embedded
    from deploy.embedding.items import Item
    from pretrain.config import RunConfig

_NOUNS = {"image": "image", "audio": "recording", "text": "text"}
_SUFFIXES = (".npz", ".safetensors", ".parquet")
_MOST_REASONS = 5


def main(argv: list[str]) -> int:
    """Encode, write, and print what was left out; returns the exit status."""
    arguments = parser().parse_args(argv)
    out: Path = arguments.out
    if out.suffix not in _SUFFIXES:
        raise RunError(f"--out {out}: must end in {', '.join(_SUFFIXES)}")
    if not out.parent.is_dir():
        raise RunError(f"--out {out}: there is no folder {out.parent}")

    from data_pipelines.errors import DataError
    from deploy.embedding.encode import Embedder, embed
    from deploy.embedding.files import write
    from deploy.embedding.inputs import Decoder
    from deploy.embedding.items import find_items
    from deploy.evaluate import chosen_device
    from deploy.export.encoder import chosen_modality, load_encoder, only
    from pretrain.checkpoint.progress import read_run_config
    from pretrain.checkpoint.store import locate

    device = chosen_device(arguments.device)
    checkpoint = locate(arguments.checkpoint)
    config = read_run_config(checkpoint)
    modality = chosen_modality(config.model, arguments.modality)
    model = only(config.model, modality)
    items = find_items(arguments.inputs, modality, lines=arguments.lines)
    tokenizer = _tokenizer(items, config, arguments.tokenizer) if modality == "text" else None
    decoder = Decoder(model.modalities[modality], config.data.sources[modality], tokenizer)
    embedder = Embedder(load_encoder(checkpoint, model, arguments.source), device, per_token=arguments.tokens)
    with Progress("embed", len(items), f"{_NOUNS[modality]}s") as progress:
        embedded = embed(items, decoder, embedder, arguments.batch_size, progress)
    if not embedded.keys:
        raise DataError(f"nothing to write: {_left_out(embedded)}")
    write(embedded, out, per_token=arguments.tokens)
    print(f"embed: {out} ({_summary(embedded, modality, decoder.num_cut)})")
    return 0


def _tokenizer(items: "list[Item]", config: "RunConfig", place: Path | None) -> "Tokenizer | None":
    """The tokenizer of texts outside of shards, if there are any.

    Raises:
        DataError: if there is none.
        RunError: if it is not the model's.
    """
    from data_pipelines.tokenizers.load import load_tokenizer

    if all(item.in_shard for item in items):
        return None
    if place is None:
        data = Path(config.data.path_of("text"))
        place = data if data.is_dir() else data.parent
    tokenizer = load_tokenizer(place)
    assert config.model.text is not None
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise RunError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model knows {config.model.text.vocab_size:,}; "
            "--tokenizer names another one"
        )
    return tokenizer


def _summary(embedded: "Embedded", modality: str, num_cut: int) -> str:
    parts = [f"{counted(len(embedded.keys), _NOUNS[modality])}, {embedded.features[0].shape[-1]} numbers each"]
    if embedded.features[0].dim() == 2:
        parts = [f"{parts[0]} of {sum(map(len, embedded.features)):,} tokens"]
    if num_cut:
        parts.append(f"{counted(num_cut, 'text')} cut to the model's length")
    return "; ".join([*parts, *([_left_out(embedded)] if embedded.left_out else [])])


def _left_out(embedded: "Embedded") -> str:
    reasons = [
        f"{count:,} {reason} ({embedded.examples[reason]})"
        for reason, count in embedded.left_out.most_common(_MOST_REASONS)
    ]
    more = len(embedded.left_out) - len(reasons)
    return f"{embedded.left_out.total():,} left out: " + ", ".join(
        [*reasons, *([f"{more} more reasons"] if more else [])]
    )


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v embed``."""
    parser = argparse.ArgumentParser(
        prog="d2v embed",
        description="Features of the last block: the mean over patches, frames or tokens, or each of them.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="run directory or one of its checkpoints")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders of files, or shards")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"ends in {', '.join(_SUFFIXES)}")
    parser.add_argument("--tokens", action="store_true", help="one vector per patch, frame or token")
    parser.add_argument("--source", choices=("student", "teacher"), default="student", help="default: student")
    parser.add_argument("--modality", choices=tuple(_NOUNS), help="which of a run of several")
    parser.add_argument("--lines", action="store_true", help="every line of a text file is a text")
    parser.add_argument("--tokenizer", type=Path, help="of text: folder or file; default: the folder of the data")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="encoded at once; default: 32")
    parser.add_argument("--device", help="torch device; default: the accelerator if there is one, else cpu")
    return parser
