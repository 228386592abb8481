import inspect
import json
import logging
import random
import textwrap
import unicodedata
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.tokenizers import gpt2_bpe
from data_pipelines.tokenizers.base import SPECIALS, UNKNOWN
from data_pipelines.tokenizers.load import load_tokenizer
from tests.unit.data_pipelines.tokenizers import gpt2

ENGLISH = "\n".join(inspect.getdoc(module) or "" for module in (textwrap, random, json, inspect, logging))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    gpt2.write_files(folder, ENGLISH)
    return folder


def expected_ids(folder: Path, text: str) -> list[int]:
    """Slowly: GPT-2's numbers, then the place of each in the dictionary, behind the four specials."""
    numbers = json.loads((folder / "encoder.json").read_text())
    merges = [tuple(line.split()) for line in (folder / "vocab.bpe").read_text().split("\n")[1:-1]]
    listed = [line.split()[0] for line in (folder / "dict.txt").read_text().splitlines()]
    ids = gpt2.encode(text, {pair: rank for rank, pair in enumerate(merges)}, numbers)
    return [4 + listed.index(str(number)) for number in ids]


def assigned_characters(number: int, seed: int) -> str:
    """Any characters that Unicode had when GPT-2 was made."""
    generator = random.Random(seed)
    drawn = (chr(generator.randrange(0x30000)) for _ in range(10 * number))
    return "".join(one for one in drawn if unicodedata.category(one) not in ("Cn", "Cs"))[:number]


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        "It's what they'll've said: we'd 're 'S 'LL don''t",
        "  two  three   \n\n\t tabs\t\tand   \r\n trailing   ",
        "1234 5a6 ½ ² ٣ x1y2",
        "naïve café ☃ 漢字かな 🙂👩‍👩‍👧 \u00a0nbsp\u2003em\u3000wide\x85nel\x1cfs",
        "<s> </s> <pad> <mask> <|endoftext|>",
        "",
        " ",
        "\n",
        assigned_characters(3000, seed=0),
        " ".join(assigned_characters(2, seed=seed) for seed in range(500)),
    ],
)
def test_it_is_gpt2s_encoding_under_fairseqs_dictionary(folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text)
    assert ids == expected_ids(folder, text)
    assert tokenizer.decode(ids) == text


def test_every_character_is_cut_as_gpt2_cuts_it(folder: Path) -> None:
    """Letter, number, space or other: each next to each."""
    tokenizer = load_tokenizer(folder)
    space = [chr(code) for code in range(0x11000) if chr(code).isspace()]
    text = "".join(f"a{one}1{one}{one}.{one} " for one in space)
    assert tokenizer.encode(text) == expected_ids(folder, text)


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_a_long_text_is_encoded_in_parts(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2_bpe, "_PART_CHARACTERS", size)
    text = ENGLISH + "  two  spaces it's 5 apples é à x\n y " + assigned_characters(300, seed=1)
    parts = list(gpt2_bpe._parts(text))
    assert "".join(parts) == text
    assert len(parts) > len(text) / (size + 100)
    assert load_tokenizer(folder).encode(text) == expected_ids(folder, text)


def test_words_were_really_merged(folder: Path) -> None:
    ids = load_tokenizer(folder).encode(ENGLISH)
    assert len(ids) < 0.6 * len(ENGLISH)


def test_numbers_are_fairseqs(folder: Path) -> None:
    """Line n of dict.txt is token 3 + n, <mask> is the last one."""
    tokenizer = load_tokenizer(folder)
    lines = (folder / "dict.txt").read_text().splitlines()
    assert tokenizer.vocab_size == 4 + len(lines) + 1 == 4 + 256 + 300 + 2 + 1
    assert tuple(map(tokenizer.piece, range(4))) == SPECIALS
    symbols = {number: symbol for symbol, number in json.loads((folder / "encoder.json").read_text()).items()}
    for place in (0, 1, 99, 556):
        assert tokenizer.piece(4 + place) == symbols[int(lines[place].split()[0])]
    assert tokenizer.piece(tokenizer.vocab_size - 2) == "madeupword0000"
    assert tokenizer.piece(tokenizer.vocab_size - 1) == "<mask>"
    assert tokenizer.decode([0, *tokenizer.encode("a b"), 2, 1, 3, tokenizer.vocab_size - 1]) == "a b"


def test_what_the_dictionary_lacks_is_unknown(tmp_path: Path) -> None:
    files = gpt2.write_files(tmp_path, ENGLISH)
    number = json.loads(files["encoder.json"])["Z"]
    lines = files["dict.txt"].decode().splitlines(keepends=True)
    (tmp_path / "dict.txt").write_text("".join(line for line in lines if line.split()[0] != str(number)))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("Z") == [UNKNOWN]
    assert tokenizer.decode(tokenizer.encode("aZb")) == "ab"


def test_the_files_give_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for name, content in tokenizer.files.items():
        (tmp_path / name).write_bytes(content)
    assert load_tokenizer(tmp_path).encode(ENGLISH) == tokenizer.encode(ENGLISH)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("encoder.json", b"{", "encoder.json: not JSON"),
        ("encoder.json", b'["a"]', "encoder.json: not a JSON object of symbols"),
        ("encoder.json", b'{"a": -1}', "encoder.json: not a JSON object of symbols"),
        ("encoder.json", b'{"a": 1}', "encoder.json: 255 of the 256 bytes have no symbol"),
        ("vocab.bpe", b"#version: 0.2\na b\nc\n", "vocab.bpe: line 3 is not a pair of symbols"),
        ("vocab.bpe", "#version: 0.2\n漢 字\n".encode(), "vocab.bpe: does not belong to encoder.json"),
        ("vocab.bpe", b"\xff\n", "vocab.bpe: not UTF-8 text"),
        ("dict.txt", b"13 5\n14\n", "dict.txt: line 2 is not 'TOKEN COUNT'"),
        ("dict.txt", b"13 5\n13 5\n", "dict.txt: lists 1 tokens twice"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    gpt2.write_files(tmp_path, "a few words", num_merges=3)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
