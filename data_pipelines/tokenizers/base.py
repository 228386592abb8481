"""What a tokenizer is to the rest of the house: text <-> token numbers, with fairseq's numbers of the specials."""

from collections.abc import Sequence
from typing import Protocol

START, PADDING, END, UNKNOWN = 0, 1, 2, 3
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
"""By number: before every block; behind a short one; behind every document; what the vocabulary cannot write."""


class Tokenizer(Protocol):
    """Text <-> token numbers."""

    @property
    def vocab_size(self) -> int:
        """Tokens, specials included: numbers are below this."""
        ...

    @property
    def files(self) -> dict[str, bytes]:
        """By name, the files that ``load_tokenizer`` makes the same tokenizer of."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text; no <s> or </s> is added, and none is seen in the text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text; specials give nothing."""
        ...

    def piece(self, token: int) -> str:
        """One token as the vocabulary writes it."""
        ...
