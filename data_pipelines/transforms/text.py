"""Blocks of token numbers as shards hold them: one ``.npy`` member per sample."""

import io
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.config import TextSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.tokenizers.base import PADDING

MEMBER = "npy"
_HEADER_BYTES = 128  # of every one-dimensional .npy file that we write


def pack_tokens(ids: Sequence[int], vocab_size: int) -> bytes:
    """A block as ``.npy`` file: 16 bits per token where the vocabulary fits, else 32."""
    buffer = io.BytesIO()
    np.save(buffer, np.array(ids, dtype=_dtype(vocab_size)), allow_pickle=False)
    return buffer.getvalue()


def count_tokens(member_sizes: NDArray[np.integer[Any]], vocab_size: int) -> int:
    """Tokens of packed blocks, from their sizes in bytes."""
    return int((member_sizes - _HEADER_BYTES).sum()) // _dtype(vocab_size).itemsize


def _dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def token_member(extensions: Collection[str]) -> str:
    """The extension of the member of a sample that is its block.

    Raises:
        DataError: if there is none.
    """
    if MEMBER not in extensions:
        raise DataError(f"has no text member (.{MEMBER}), only .{', .'.join(extensions)}")
    return MEMBER


def token_bytes(members: dict[str, bytes]) -> bytes:
    """The member of a sample that is its block; raises as ``token_member``."""
    return members[token_member(members)]


def load_tokens(data: bytes, config: TextSourceConfig, vocab_size: int | None) -> NDArray[np.int64]:
    """A block, filled up with <pad>.

    Args:
        data: a ``.npy`` file.
        config: how long a sample is.
        vocab_size: numbers must be below; None if it is not known.
    Returns:
        (tokens_per_sample,) int64.
    Raises:
        DataError: if it is not a block of tokens, or longer than a sample.
    """
    ids = read_tokens(data, vocab_size)
    if len(ids) > config.tokens_per_sample:
        raise DataError(
            f"a block of {len(ids):,} tokens is longer than data.text.tokens_per_sample, {config.tokens_per_sample:,}; "
            f"set that to {len(ids)}, or prepare the text again with --tokens-per-sample {config.tokens_per_sample}"
        )
    padded = np.full(config.tokens_per_sample, PADDING, dtype=np.int64)
    padded[: len(ids)] = ids
    return padded


def read_tokens(data: bytes, vocab_size: int | None = None) -> NDArray[np.int64]:
    """The token numbers of a block, as many as there are.

    Nothing is allocated by what the header announces: it must agree with the size of the file.

    Args:
        data: a ``.npy`` file.
        vocab_size: numbers must be below; None if it is not known.
    Raises:
        DataError: if it is not a one-dimensional array of such integers.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read_header[version](stream)
    except Exception as error:  # numpy meets broken headers with many kinds
        raise DataError("not a .npy array of token numbers") from error
    if dtype.kind not in "iu" or len(shape) != 1:
        raise DataError(f"an array of {dtype} and shape {shape} instead of a row of token numbers")
    if len(data) - stream.tell() != shape[0] * dtype.itemsize:
        raise DataError(f"has {len(data):,} bytes, its header announces {shape[0]:,} numbers of {dtype.itemsize}")
    ids = np.frombuffer(data, dtype, offset=stream.tell()).astype(np.int64)
    if len(ids) == 0:
        raise DataError("a block without tokens")
    outside = ids[(ids < 0) | (ids >= (vocab_size or np.iinfo(np.int64).max))]
    if len(outside):
        where = "negative" if vocab_size is None else f"outside of the vocabulary of {vocab_size:,}"
        raise DataError(f"token number {outside[0]} is {where}")
    return ids
