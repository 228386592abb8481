import io
import random

import numpy as np
import pytest

from data_pipelines.config import TextSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.transforms.text import count_tokens, load_tokens, pack_tokens, read_tokens, token_bytes


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1000, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_numpy_reads_what_is_packed_in_the_narrowest_type(vocab_size: int, dtype: str) -> None:
    ids = [0, 17, vocab_size - 1, 2]
    data = pack_tokens(ids, vocab_size)
    stored = np.load(io.BytesIO(data), allow_pickle=False)
    assert (stored.tolist(), stored.dtype) == (ids, np.dtype(dtype))
    assert read_tokens(data, vocab_size).tolist() == ids
    assert read_tokens(data).dtype == np.int64
    sizes = np.array([len(pack_tokens([3] * number, vocab_size)) for number in (1, 2, 511, 512, 100_000)])
    assert count_tokens(sizes, vocab_size) == 1 + 2 + 511 + 512 + 100_000


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "int64", "uint64", ">i4"])
def test_other_integers_are_read_too(dtype: str) -> None:
    assert read_tokens(npy(np.array([5, 99, 4], dtype=dtype)), 100).tolist() == [5, 99, 4]


def test_a_short_block_is_filled_up_with_padding() -> None:
    result = load_tokens(pack_tokens([0, 7, 2], 10), TextSourceConfig(tokens_per_sample=6), 10)
    assert result.tolist() == [0, 7, 2, 1, 1, 1]
    assert result.dtype == np.int64
    assert load_tokens(pack_tokens([0, 7, 2], 10), TextSourceConfig(tokens_per_sample=3), None).tolist() == [0, 7, 2]


def test_a_long_block_is_refused_with_the_fix() -> None:
    message = (
        r"^a block of 1,024 tokens is longer than data.text.tokens_per_sample, 512; "
        r"set that to 1024, or prepare the text again with --tokens-per-sample 512$"
    )
    with pytest.raises(DataError, match=message):
        load_tokens(pack_tokens([4] * 1024, 10), TextSourceConfig(), 10)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), np.uint16), r"^an array of uint16 and shape \(2, 3\) instead of a row of token numbers$"),
        (np.uint16(4), r"^an array of uint16 and shape \(\) instead"),
        (np.zeros(3), "^an array of float64 and shape"),
        (np.zeros(3, bool), "^an array of bool and shape"),
        (np.array(["a", 1], dtype=object), "^an array of object and shape"),
        (np.array(["a"]), "^an array of <U1 and shape"),
        (np.zeros(0, np.uint16), "^a block without tokens$"),
        (np.array([5, 1000], np.uint16), "^token number 1000 is outside of the vocabulary of 1,000$"),
        (np.array([5, -1], np.int64), "^token number -1 is outside of the vocabulary of 1,000$"),
        (np.array([2**64 - 1], np.uint64), "^token number -1 is outside"),
    ],
)
def test_other_arrays_are_no_block(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_tokens(npy(array), 1000)


def test_negative_numbers_are_refused_without_a_vocabulary_too() -> None:
    with pytest.raises(DataError, match="^token number -3 is negative$"):
        read_tokens(npy(np.array([5, -3])))


@pytest.mark.parametrize(
    "data", [b"", b"text", b"PK\x03\x04" + bytes(50), b"\x93NUMPY", b"\x93NUMPY\x09\x00" + bytes(99)]
)
def test_other_bytes_are_no_array(data: bytes) -> None:
    with pytest.raises(DataError, match="^not a .npy array of token numbers$"):
        read_tokens(data)


@pytest.mark.parametrize("shape", ["(10000000000000,)", "(511,)", "(513,)"])
def test_nothing_is_allocated_by_what_a_header_announces(shape: str) -> None:
    data = pack_tokens([4] * 512, 10).replace(b"(512,), }", f"{shape}, }}".encode())
    header = 128 + len(data) - len(pack_tokens([4] * 512, 10))
    data = data[:8] + (header - 10).to_bytes(2, "little") + data[10:]
    with pytest.raises(DataError, match="^has 1,... bytes, its header announces .* numbers of 2$"):
        read_tokens(data)


def test_damaged_bytes_give_tokens_or_one_error() -> None:
    generator = random.Random(0)
    whole = pack_tokens(range(4, 260), 300)
    num_refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(generator.randrange(1, 4)):
            data[generator.randrange(130)] = generator.randrange(256)
        try:
            read_tokens(bytes(data), 300)
        except DataError as error:
            num_refused += 1
            assert "\n" not in str(error)
    assert num_refused > 1000


def test_members_of_other_kinds_are_no_text() -> None:
    assert token_bytes({"txt": b"", "npy": b"x"}) == b"x"
    with pytest.raises(DataError, match=r"^has no text member \(.npy\), only .txt, .json$"):
        token_bytes({"txt": b"", "json": b""})
