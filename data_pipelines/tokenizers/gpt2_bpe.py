"""GPT-2's byte-level BPE under fairseq's dictionary: what the released data2vec 2.0 text checkpoint reads.

Text becomes numbers in two steps. ``encoder.json`` and ``vocab.bpe`` are GPT-2's: text -> BPE numbers. ``dict.txt``
lists BPE numbers by frequency, and a token's number is its line there, behind the four specials; ``<mask>`` comes last
(fairseq/data/dictionary.py, fairseq/data/encoders/gpt2_bpe.py).
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Pipeline
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from data_pipelines.errors import DataError
from data_pipelines.tokenizers.base import SPECIALS, UNKNOWN

ENCODER, MERGES, DICTIONARY = FILE_NAMES = ("encoder.json", "vocab.bpe", "dict.txt")
MASK = "<mask>"
_PART_CHARACTERS = 1 << 18
_BETWEEN_WORDS = re.compile("(?<=[A-Za-z]) (?=[A-Za-z])")


class Gpt2BpeTokenizer:
    """The three files as ``Tokenizer``."""

    def __init__(self, files: dict[str, bytes], folder: Path) -> None:
        """Args: the contents of the files by name, and their folder, for messages.

        Raises:
            DataError: if a file is not what its name says.
        """
        self._files = files
        numbers = _read_encoder(files[ENCODER], folder / ENCODER)
        self._symbols = {str(number): symbol for symbol, number in numbers.items()}
        self._words = [*SPECIALS, *_read_dictionary(files[DICTIONARY], folder / DICTIONARY), MASK]
        tokens = {word: token for token, word in enumerate(self._words)}
        self._token_of = {number: tokens.get(str(number), UNKNOWN) for number in numbers.values()}
        try:
            self._pipeline = Pipeline(BPE(vocab=numbers, merges=_read_merges(files[MERGES], folder / MERGES)))
        except DataError:
            raise
        except Exception as error:  # the library raises plain ones
            raise DataError(f"{folder / MERGES}: does not belong to {ENCODER} ({error})") from error
        self._pipeline.pre_tokenizer = ByteLevel(add_prefix_space=False)
        self._pipeline.decoder = ByteLevelDecoder()

    @property
    def vocab_size(self) -> int:
        """See ``Tokenizer``."""
        return len(self._words)

    @property
    def files(self) -> dict[str, bytes]:
        """See ``Tokenizer``."""
        return self._files

    def encode(self, text: str) -> list[int]:
        """See ``Tokenizer``."""
        return [self._token_of[number] for part in _parts(text) for number in self._pipeline.encode(part).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Tokenizer``."""
        words = map(self._words.__getitem__, ids)
        return str(self._pipeline.decode([int(word) for word in words if word in self._symbols]))

    def piece(self, token: int) -> str:
        """See ``Tokenizer``."""
        word = self._words[token]
        return self._symbols.get(word, word)


def _parts(text: str) -> Iterator[str]:
    """Cut a long text where GPT-2's words end in any case: the library takes 150 bytes of memory per character."""
    begin = 0
    while cut := _BETWEEN_WORDS.search(text, begin + _PART_CHARACTERS):
        yield text[begin : cut.start()]
        begin = cut.start()
    yield text[begin:]


def _read_encoder(data: bytes, path: Path) -> dict[str, int]:
    """Symbol -> BPE number."""
    try:
        numbers = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(numbers, dict) or not all(type(number) is int and number >= 0 for number in numbers.values()):
        raise DataError(f"{path}: not a JSON object of symbols and their numbers")
    if missing := set(ByteLevel.alphabet()) - numbers.keys():  # the library would drop such bytes from texts
        raise DataError(f"{path}: {len(missing)} of the 256 bytes have no symbol; it is not GPT-2's encoder.json")
    return numbers


def _read_merges(data: bytes, path: Path) -> list[tuple[str, str]]:
    """Pairs of symbols in the order in which they are merged; the first line is a version."""
    merges = []
    for number, line in enumerate(_lines(data, path)[1:], start=2):
        pair = line.split()
        if len(pair) != 2:
            raise DataError(f"{path}: line {number} is not a pair of symbols")
        merges.append((pair[0], pair[1]))
    return merges


def _read_dictionary(data: bytes, path: Path) -> list[str]:
    """Words by line: BPE numbers as text, and fairseq's fillers."""
    words = []
    for number, line in enumerate(_lines(data, path), start=1):
        word, _, count = line.rstrip().rpartition(" ")
        if not word or not count.isdecimal():
            raise DataError(f"{path}: line {number} is not 'TOKEN COUNT'")
        words.append(word)
    if len(set(words)) != len(words):
        raise DataError(f"{path}: lists {len(words) - len(set(words))} tokens twice")
    return words


def _lines(data: bytes, path: Path) -> list[str]:
    try:
        return data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text") from error
