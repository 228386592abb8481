"""Text corpora -> shards of token blocks, cut as fairseq's ``sample_break_mode none`` does.

The documents that begin in a piece of the corpus are one stream of tokens, each followed by </s>. The stream is cut
into blocks, each led by <s>; blocks do not end where documents do. A piece becomes a shard, whoever makes it.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.jobs import Advance
from data_pipelines.prepare.corpus import SUFFIXES, Span, TextFile, cut_into_pieces, spread_windows
from data_pipelines.prepare.documents import Document, DocumentRules, read_documents
from data_pipelines.prepare.folder import Plan, Rejected
from data_pipelines.shards.index import ShardIndex
from data_pipelines.shards.writer import Stored
from data_pipelines.tokenizers.base import END, START, Tokenizer
from data_pipelines.tokenizers.load import load_tokenizer
from data_pipelines.tokenizers.sentencepiece_model import FILE_NAME, train_sentencepiece
from data_pipelines.transforms.text import MEMBER, count_tokens, pack_tokens

_NUM_WINDOWS = 32
_MAX_REJECTED_AT_START = 10_000
_ADVANCE_BYTES = 1 << 20  # progress is a lock that all processes share


@dataclass(frozen=True)
class Corpus:
    """A source of text whose sizes are known."""

    source: Path
    files: Sequence[TextFile]
    rules: DocumentRules

    @property
    def size_bytes(self) -> int:
        """Of the text, decompressed."""
        return sum(file.size for file in self.files)


class Piece(NamedTuple):
    """Consecutive text of the corpus; the documents that begin in it become one shard."""

    number: int
    spans: Sequence[Span]

    @property
    def size_bytes(self) -> int:
        """Of the text."""
        return sum(span.end - span.begin for span in self.spans)


def train_tokenizer(corpus: Corpus, vocab_size: int, sample_bytes: int) -> Tokenizer:
    """Train sentencepiece on parts of the corpus that are evenly spread over it.

    Raises:
        DataError: if there is too little text for so many tokens, or none.
    """
    _check_start(corpus)
    spans = spread_windows(corpus.files, sample_bytes, _NUM_WINDOWS)
    documents = (one for span in spans for one in read_documents(span, corpus.rules))
    try:
        return train_sentencepiece((one.text for one in documents if isinstance(one, Document)), vocab_size)
    except DataError as error:
        raise DataError(f"{corpus.source}: {error}") from error


def stored_tokenizer(out: Path, vocab_size: int) -> Tokenizer | None:
    """What an interrupted call trained for the same folder; None if there is none of that size."""
    if not (out / FILE_NAME).exists():
        return None
    tokenizer = load_tokenizer(out / FILE_NAME)
    return tokenizer if tokenizer.vocab_size == vocab_size else None


def plan_text(
    corpus: Corpus, out: Path, *, tokenizer: Tokenizer, tokens_per_sample: int, piece_size_bytes: int
) -> Plan:
    """What to write for a corpus; only its start is read yet.

    A sample ``PIECE-BLOCK`` is one block as ``.npy`` (``transforms.text``). The folder gets the tokenizer too.

    Args:
        corpus: what to read.
        out: the folder of shards.
        tokenizer: text -> numbers.
        tokens_per_sample: of a block, <s> included. The last block of a shard repeats tokens of the one before to be
            full; only a piece with fewer tokens gives a shorter one.
        piece_size_bytes: text per shard.
    Raises:
        DataError: if the corpus cannot be used.
    """
    if tokens_per_sample < 2:
        raise DataError(f"--tokens-per-sample: must be at least 2, got {tokens_per_sample}")
    if corpus.source.is_dir() and out.resolve().is_relative_to(corpus.source.resolve()):
        raise DataError(f"{out}: lies inside the source {corpus.source}; choose a folder outside of it")
    _check_start(corpus)
    options = f"{tokens_per_sample} tokens per sample, pieces of {piece_size_bytes} bytes, {corpus.rules}"
    digest = hashlib.sha256(f"text 1: {options}".encode())
    for name, content in sorted(tokenizer.files.items()):
        digest.update(f"\n{name} {hashlib.sha256(content).hexdigest()}".encode())
    for file in corpus.files:
        digest.update(f"\n{file.name!r} {file.size} {file.damage!r}".encode())
    pieces = map(Piece, itertools.count(), cut_into_pieces(corpus.files, piece_size_bytes))
    vocabulary = tokenizer.vocab_size
    return Plan(
        kind="text",
        made_from=f"{corpus.source} ({tokens_per_sample} tokens per sample, vocabulary of {vocabulary:,})",
        fingerprint=digest.hexdigest(),
        files=tokenizer.files,
        shards=[[piece] for piece in pieces],
        make=lambda some, advance: _samples(some, advance, corpus.rules, tokenizer, tokens_per_sample),
        unit="B",
        work=lambda piece: piece.size_bytes,
        measure=lambda index: _measure(index, vocabulary),
    )


def _check_start(corpus: Corpus) -> None:
    """See early that the options fit the files."""
    first, number = None, 0
    for file in corpus.files:
        if file.suffix not in SUFFIXES:
            continue
        for one in read_documents(Span(file, 0, file.size), corpus.rules):
            if isinstance(one, Document):
                return
            first, number = first or one, number + 1
            if number == _MAX_REJECTED_AT_START:
                raise DataError(f"{first.source}: {first.reason}; no document among the first {number:,}")
    reason = f" ({first.source}: {first.reason})" if first else ""
    raise DataError(f"{corpus.source}: no document in it is usable{reason}")


def _samples(
    pieces: Sequence[Piece], advance: Advance, rules: DocumentRules, tokenizer: Tokenizer, tokens_per_sample: int
) -> Iterator[Stored | Rejected]:
    for piece in pieces:
        rejected: list[Rejected] = []
        tokens = _tokens(piece, advance, rules, tokenizer, rejected)
        for number, block in enumerate(cut_into_blocks(tokens, tokens_per_sample)):
            yield Stored(f"{piece.number:06d}-{number:06d}", {MEMBER: pack_tokens(block, tokenizer.vocab_size)})
        yield from rejected


def _tokens(
    piece: Piece, advance: Advance, rules: DocumentRules, tokenizer: Tokenizer, rejected: list[Rejected]
) -> Iterator[list[int]]:
    """The documents of a piece, each as its tokens and </s>."""
    for span in piece.spans:
        done = span.begin
        for one in read_documents(span, rules):
            if isinstance(one, Rejected):
                rejected.append(one)
                continue
            yield [*tokenizer.encode(one.text), END]
            if one.end - done >= _ADVANCE_BYTES and one.end < span.end:
                advance(one.end - done)
                done = one.end
        advance(span.end - done)


def cut_into_blocks(stream: Iterable[Sequence[int]], tokens_per_sample: int) -> Iterator[list[int]]:
    """Cut a stream of tokens into blocks of equal length, each led by <s>.

    The rest of the stream is filled up with the tokens before it; a stream that is shorter than one block gives one
    of its own length, an empty one none.
    """
    size = tokens_per_sample - 1
    previous: list[int] = []
    waiting: list[int] = []
    for some in stream:
        waiting += some
        num_whole = len(waiting) // size
        for start in range(0, num_whole * size, size):
            previous = waiting[start : start + size]
            yield [START, *previous]
        del waiting[: num_whole * size]
    if waiting:
        yield [START, *(previous + waiting)[-size:]]


def _measure(index: ShardIndex, vocab_size: int) -> dict[str, float]:
    sizes = index.columns[MEMBER].size if MEMBER in index.columns else np.zeros(0, dtype=np.int64)
    return {"tokens": count_tokens(sizes, vocab_size)}
