"""Sentencepiece (Kudo, Richardson 2018), the only module that knows it: a vocabulary trained on the corpus itself.

Models that are trained here lose nothing: spaces and line feeds are kept, no character is normalised, and what the
vocabulary lacks is written in bytes, so that decode(encode(text)) == text and <unk> never appears. (The exception:
U+2581, by which sentencepiece writes a space, comes back as one.)
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from data_pipelines.errors import DataError
from data_pipelines.tokenizers.base import END, PADDING, SPECIALS, START, UNKNOWN

FILE_NAME = "tokenizer.model"
_MAX_SENTENCE_CHARACTERS = 1024
_MAX_SENTENCE_BYTES = 4 * _MAX_SENTENCE_CHARACTERS  # sentencepiece leaves out longer ones without a word
_ERRORS_ONLY = 2


class SentencepieceTokenizer:
    """A sentencepiece model as ``Tokenizer``."""

    def __init__(self, model: bytes, name: str) -> None:
        """Args: the content of a model file, and what to call it in messages.

        Raises:
            DataError: if it is not a model, or its specials have other numbers than ours.
        """
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.load_from_serialized_proto(model)
        except RuntimeError as error:
            raise DataError(f"{name}: not a sentencepiece model") from error
        processor = self._processor
        numbers = (processor.bos_id(), processor.pad_id(), processor.eos_id(), processor.unk_id())
        if numbers != (START, PADDING, END, UNKNOWN):
            raise DataError(
                f"{name}: {', '.join(SPECIALS)} have the numbers {', '.join(map(str, numbers))} instead of 0, 1, 2, 3; "
                "train it with --bos_id=0 --pad_id=1 --eos_id=2 --unk_id=3"
            )

    @property
    def vocab_size(self) -> int:
        """See ``Tokenizer``."""
        return int(self._processor.get_piece_size())

    @property
    def files(self) -> dict[str, bytes]:
        """See ``Tokenizer``."""
        return {FILE_NAME: self._model}

    def encode(self, text: str) -> list[int]:
        """See ``Tokenizer``."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Tokenizer``."""
        return str(self._processor.decode([token for token in map(int, ids) if token >= len(SPECIALS)]))

    def piece(self, token: int) -> str:
        """See ``Tokenizer``."""
        return str(self._processor.id_to_piece(int(token)))


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencepieceTokenizer:
    """Train a unigram model; the same texts give the same bytes, on any number of cores.

    Measured: about 1 s and 30 MB of memory per MB of text.

    Args:
        texts: a sample of the corpus.
        vocab_size: tokens, specials included.
    Raises:
        DataError: if the texts are too few for so many tokens, or need more; names the number that works.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            vocab_size=vocab_size,
            bos_id=START,
            pad_id=PADDING,
            eos_id=END,
            unk_id=UNKNOWN,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            max_sentence_length=_MAX_SENTENCE_BYTES,
            num_threads=1,  # sums of floats differ with the number of threads, and more were not faster
            minloglevel=_ERRORS_ONLY,
        )
    except RuntimeError as error:
        raise DataError(f"the vocabulary cannot be trained: {_reason(str(error), vocab_size)}") from error
    return SentencepieceTokenizer(model.getvalue(), "the trained tokenizer")


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines, cut where they are too long for the trainer."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _MAX_SENTENCE_CHARACTERS):
                yield line[start : start + _MAX_SENTENCE_CHARACTERS]


def _reason(message: str, vocab_size: int) -> str:
    """What sentencepiece's message means here."""
    if found := re.search(r"too high \(\d+\).*<= (\d+)", message):
        return (
            f"the text is too small for {vocab_size:,} tokens; the largest number that works is {found[1]} "
            f"(--vocab-size {found[1]})"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"{vocab_size:,} tokens cannot hold the specials, 256 bytes and the frequent characters; the smallest "
            f"number that works is {found[1]} (--vocab-size {found[1]})"
        )
    if "insert_id(" in message:
        return f"{vocab_size:,} tokens cannot hold the specials, 256 bytes and the frequent characters (--vocab-size)"
    if "!sentences_.empty()" in message:
        return "there is no text"
    return " ".join(message.split())
