"""``d2v prepare KIND ...``: raw files -> shards with an index."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.config import AudioSourceConfig, ImageSourceConfig, TextSourceConfig
from data_pipelines.errors import DataError
from deploy.arguments import part_parser, positive_float, positive_int, read_part, workers_parser
from deploy.progress import Progress, counted, readable_bytes
from deploy.summary import summary

if TYPE_CHECKING:
    from data_pipelines.prepare.folder import Plan
    from data_pipelines.prepare.text import Corpus
    from data_pipelines.tokenizers.base import Tokenizer

_MIB = 1 << 20
_VOCAB_SIZE = 32_000
_TRAINING_BYTES = 32 * _MIB  # of text, for the tokenizer: about half a minute and 1 GB of memory
_BOUNDARIES = {"blank-line": "blank", "line": "line", "file": "file"}


def main(argv: list[str]) -> int:
    """Prepare one data set; returns the exit status.

    Raises:
        DataError: for input or output that cannot be used.
    """
    arguments = parser().parse_args(argv)
    kinds: dict[str, Callable[[argparse.Namespace], None]] = {
        "images": _images,
        "speech": _speech,
        "text": _text,
        "digits": _digits,
        "stdlib": _stdlib,
    }
    if "part" in arguments:
        arguments.part = read_part(arguments.part)
    if "source" in arguments and not arguments.source.exists():
        raise DataError(f"{arguments.source}: does not exist")
    if "tokens_per_sample" in arguments and arguments.tokens_per_sample < 2:
        raise DataError(f"--tokens-per-sample: must be at least 2 (<s> is one), got {arguments.tokens_per_sample}")
    kinds[arguments.kind](arguments)
    return 0


def _images(arguments: argparse.Namespace) -> None:
    from data_pipelines.prepare.images import plan_images

    plan = plan_images(
        arguments.source,
        arguments.out,
        shard_size_bytes=arguments.shard_size_mb * _MIB,
        max_samples_per_shard=arguments.max_samples_per_shard,
        max_pixels=arguments.max_pixels,
    )
    _write(plan, arguments.out, arguments, arguments.part)


def _speech(arguments: argparse.Namespace) -> None:
    from data_pipelines.prepare.speech import plan_speech

    plan = plan_speech(
        arguments.source,
        arguments.out,
        shard_size_bytes=arguments.shard_size_mb * _MIB,
        max_samples_per_shard=arguments.max_samples_per_shard,
        max_seconds=arguments.max_seconds,
    )
    _write(plan, arguments.out, arguments, arguments.part)


def _text(arguments: argparse.Namespace) -> None:
    from data_pipelines.prepare.corpus import find_text_files, measure_sizes
    from data_pipelines.prepare.documents import DocumentRules
    from data_pipelines.prepare.text import Corpus, plan_text
    from data_pipelines.tokenizers.load import load_tokenizer

    rules = DocumentRules(
        boundary=_BOUNDARIES[arguments.documents],
        field=arguments.text_field,
        max_document_bytes=arguments.max_document_mb * _MIB,
    )
    given = None if arguments.tokenizer is None else load_tokenizer(arguments.tokenizer)
    files = find_text_files(arguments.source)
    with Progress("measure text", sum(file.size for file in files), "B") as progress:
        files = measure_sizes(files, num_workers=arguments.workers, report=progress)
    corpus = Corpus(arguments.source, files, rules)
    plan = plan_text(
        corpus,
        arguments.out,
        tokenizer=given or _trained_tokenizer(corpus, arguments.out, arguments.vocab_size),
        tokens_per_sample=arguments.tokens_per_sample,
        piece_size_bytes=arguments.shard_size_mb * _MIB,
    )
    _write(plan, arguments.out, arguments, arguments.part)


def _trained_tokenizer(corpus: "Corpus", out: Path, vocab_size: int) -> "Tokenizer":
    """That of an interrupted call or another part, or a new one."""
    from data_pipelines.prepare.text import stored_tokenizer, train_tokenizer

    if (stored := stored_tokenizer(out, vocab_size)) is not None:
        return stored
    size = min(corpus.size_bytes, _TRAINING_BYTES)
    if size >= _MIB:  # about a second
        text = f"training a vocabulary of {vocab_size:,} tokens on {readable_bytes(size)} of text"
        print(text, file=sys.stderr, flush=True)
    return train_tokenizer(corpus, vocab_size, _TRAINING_BYTES)


def _digits(arguments: argparse.Namespace) -> None:
    from data_pipelines.prepare.digits import BANK, PRETRAIN, TEST, plan_digits

    for split, num_images in ((PRETRAIN, arguments.pretrain), (BANK, arguments.bank), (TEST, arguments.test)):
        _write(plan_digits(split, num_images, seed=arguments.seed), arguments.out / split.name, arguments)


def _stdlib(arguments: argparse.Namespace) -> None:
    from data_pipelines.prepare.stdlib_text import write_stdlib_text

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    num_documents = write_stdlib_text(arguments.out)
    print(f"{arguments.out}: {counted(num_documents, 'document')}, {readable_bytes(arguments.out.stat().st_size)}")


def _write(plan: "Plan", out: Path, arguments: argparse.Namespace, numbers: tuple[int, int] = (1, 1)) -> None:
    """Make a folder, or a part of it, and say what is in it."""
    from data_pipelines.prepare.folder import Part, unfinished_shards, write_folder

    part = Part(*numbers)
    with Progress(f"prepare {plan.kind}", plan.total(part), plan.unit) as progress:
        manifest = write_folder(plan, out, num_workers=arguments.workers, report=progress, part=part)
    if manifest.complete:
        print(summary(out, manifest))
    else:
        left = f"{len(unfinished_shards(manifest, out)):,} of {counted(len(manifest.shards), 'shard')}"
        print(f"{out}: part {part.number}/{part.num_parts} is made; {left} are left to the other parts")


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v prepare``."""
    parser = argparse.ArgumentParser(
        prog="d2v prepare",
        description="Make indexed tar shards from raw files. If interrupted, run it again: finished shards are kept.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    workers, part = workers_parser(), part_parser()
    _add_images(kinds.add_parser("images", parents=[workers, part], help="image files of one folder or tar per class"))
    _add_speech(
        kinds.add_parser("speech", parents=[workers, part], help="recordings, with transcripts if they have some")
    )
    _add_text(kinds.add_parser("text", parents=[workers, part], help="plain text or .jsonl, also .gz or .zst of them"))
    _add_digits(
        kinds.add_parser("digits", parents=[workers], help="pages stamped with scikit-learn's handwritten digits")
    )
    stdlib = kinds.add_parser("stdlib", help="a text file of the Python standard library's documentation, for trials")
    stdlib.add_argument("out", metavar="OUT.txt", type=Path, help="the text file; give it to 'd2v prepare text'")
    return parser


def _add_folders(parser: argparse.ArgumentParser, source: str) -> None:
    parser.add_argument("source", metavar="SRC", type=Path, help=source)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard-size-mb", metavar="N", type=positive_int, default=256, help="MiB per shard; default: 256"
    )
    parser.add_argument(
        "--max-samples-per-shard", metavar="N", type=positive_int, default=10_000, help="default: 10000"
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    _add_folders(
        parser,
        "a folder of one folder per class; or one .tar (the folder of a file is its class); "
        "or a folder of .tar files, one per class",
    )
    _add_limits(parser)
    parser.add_argument(
        "--max-pixels",
        metavar="N",
        type=positive_int,
        default=ImageSourceConfig().max_pixels,
        help="images with more are rejected; default: as data.image.max_pixels",
    )


def _add_speech(parser: argparse.ArgumentParser) -> None:
    _add_folders(
        parser,
        "a folder of recordings at any depth, with LibriSpeech's *.trans.txt beside them if there are some; "
        "or a .tsv manifest of fairseq",
    )
    _add_limits(parser)
    parser.add_argument(
        "--max-seconds",
        metavar="N",
        type=positive_float,
        default=AudioSourceConfig().max_decoded_seconds,
        help="longer recordings are rejected; default: as data.audio.max_decoded_seconds",
    )


def _add_text(parser: argparse.ArgumentParser) -> None:
    _add_folders(parser, "a file, or a folder of files at any depth: .txt or .jsonl, or .gz or .zst of them")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "--tokenizer",
        metavar="PATH",
        type=Path,
        help="use this one: a sentencepiece model; or a folder that 'd2v prepare text' made, or that holds GPT-2's "
        "encoder.json and vocab.bpe with fairseq's dict.txt",
    )
    vocabulary.add_argument(
        "--vocab-size",
        metavar="N",
        type=positive_int,
        default=_VOCAB_SIZE,
        help=f"train sentencepiece with so many tokens on the text itself; default: {_VOCAB_SIZE}",
    )
    parser.add_argument(
        "--tokens-per-sample",
        metavar="N",
        type=positive_int,
        default=TextSourceConfig().tokens_per_sample,
        help="length of a block; default: as data.text.tokens_per_sample",
    )
    parser.add_argument(
        "--documents",
        choices=_BOUNDARIES,
        default="blank-line",
        help="what ends a document of .txt; default: blank-line",
    )
    parser.add_argument(
        "--text-field", metavar="NAME", default="text", help="of .jsonl: the field that holds a document; default: text"
    )
    parser.add_argument(
        "--max-document-mb",
        metavar="N",
        type=positive_int,
        default=16,
        help="MiB; longer ones are rejected; default: 16",
    )
    parser.add_argument(
        "--shard-size-mb", metavar="N", type=positive_int, default=64, help="MiB of text per shard; default: 64"
    )


def _add_digits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for OUT/pretrain, OUT/bank, OUT/test")
    for name, number in (("pretrain", 20_000), ("bank", 4_000), ("test", 2_000)):
        parser.add_argument(f"--{name}", type=positive_int, default=number, help=f"images; default: {number}")
    parser.add_argument("--seed", type=int, default=0, help="of the pages (the split by source digit is fixed)")
