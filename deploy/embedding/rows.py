"""Rows of features on their way to a file: on the disk, for there may be more than the memory holds."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from torch import Tensor

_PIECE_BYTES = 2**24


class Piece(NamedTuple):
    """Some items next to each other."""

    keys: list[str]
    features: np.ndarray
    """fp32 (items, D); per token (sum of ``lengths``, D)."""
    lengths: list[int]
    """Vectors of each item."""


class Rows:
    """Keys and lengths are held, features lie in a file, one item after the other.

    Attributes:
        keys: of the items.
        lengths: vectors of each.
        width: numbers of a vector, D; 0 before the first.
        per_token: whether items have several vectors each.
    """

    def __init__(self, file: BinaryIO, *, per_token: bool) -> None:
        """Args: an empty file to write and read; whether items have several vectors each."""
        self._file = file
        self.per_token = per_token
        self.keys: list[str] = []
        self.lengths: list[int] = []
        self.width = 0

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_vectors(self) -> int:
        """Of all items together."""
        return sum(self.lengths)

    def add(self, keys: Sequence[str], features: Sequence[Tensor]) -> None:
        """Take items with their features, each (D,) or, per token, (T, D); fp32 on the CPU."""
        for key, row in zip(keys, features, strict=True):
            self.width = row.shape[-1]
            self.keys.append(key)
            self.lengths.append(row.numel() // self.width)
            self._file.write(np.ascontiguousarray(row.numpy()).data)

    def pieces(self) -> Iterator[Piece]:
        """All rows again, in parts of about 16 MiB."""
        self._file.seek(0)
        start = size = 0
        for end, length in enumerate(self.lengths, start=1):
            size += length
            if 4 * size * self.width >= _PIECE_BYTES or end == len(self.keys):
                content = np.frombuffer(self._file.read(4 * size * self.width), np.float32)
                yield Piece(self.keys[start:end], content.reshape(size, self.width), self.lengths[start:end])
                start, size = end, 0
