import hashlib
import inspect
import io
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sentencepiece

from data_pipelines.errors import DataError
from data_pipelines.tokenizers.base import SPECIALS
from data_pipelines.tokenizers.sentencepiece_model import SentencepieceTokenizer, train_sentencepiece

SOURCE = "\n".join(inspect.getsource(module) for module in (random, textwrap, subprocess))
TEXTS = SOURCE.split("\n\n")


@pytest.fixture(scope="module")
def tokenizer() -> SentencepieceTokenizer:
    return train_sentencepiece(TEXTS, 1000)


def test_specials_have_fairseqs_numbers(tokenizer: SentencepieceTokenizer) -> None:
    assert tuple(map(tokenizer.piece, range(4))) == SPECIALS
    assert tokenizer.vocab_size == 1000


@pytest.mark.parametrize(
    "text",
    [
        SOURCE[:20_000],
        "  two  three   \n\n\t tabs\t\tand   \r\n trailing   ",
        "naïve café ☃ 漢字かな 🙂 \u00a0\u3000 ﬁ Å",
        "<s> </s> <pad> <unk> <0x41>",
        "",
        " ",
        "\n",
    ],
)
def test_nothing_is_lost(tokenizer: SentencepieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(4 <= token < 1000 for token in ids)
    assert tokenizer.decode([0, *ids, 2, 1, 3]) == text


def test_every_character_but_one_comes_back(tokenizer: SentencepieceTokenizer) -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


def test_words_were_really_learned(tokenizer: SentencepieceTokenizer) -> None:
    assert len(tokenizer.encode(SOURCE)) < 0.5 * len(SOURCE)
    assert [tokenizer.piece(token) for token in tokenizer.encode("return random")] == ["▁return", "▁random"]


def test_the_same_text_gives_the_same_bytes_in_any_process(tokenizer: SentencepieceTokenizer) -> None:
    script = (
        "import hashlib\n"
        "from data_pipelines.tokenizers.sentencepiece_model import train_sentencepiece\n"
        "from tests.unit.data_pipelines.tokenizers.test_sentencepiece_model import TEXTS\n"
        "print(hashlib.sha256(train_sentencepiece(TEXTS, 1000).files['tokenizer.model']).hexdigest())\n"
    )
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    assert other.stdout.strip() == hashlib.sha256(tokenizer.files["tokenizer.model"]).hexdigest()
    assert train_sentencepiece(TEXTS[:-1], 1000).files != tokenizer.files


def test_training_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    train_sentencepiece(TEXTS, 500)
    with pytest.raises(DataError):
        train_sentencepiece(TEXTS[:5], 5000)
    assert capfd.readouterr() == ("", "")


def test_long_lines_are_learned_from_too(tokenizer: SentencepieceTokenizer) -> None:
    """sentencepiece by itself leaves out sentences of more than 4,192 bytes."""
    one_line = train_sentencepiece([" ".join(SOURCE.split())], 1000)
    assert one_line.vocab_size == 1000
    assert len(one_line.encode(SOURCE)) < 0.6 * len(SOURCE)
    wide = train_sentencepiece(["漢字" * 30_000], 263)  # 3 bytes a character
    assert len(wide.encode("漢字漢字")) < 12


def test_a_corpus_that_is_too_small_is_refused_with_the_size_that_works() -> None:
    few = TEXTS[:40]
    with pytest.raises(
        DataError, match=r"^the vocabulary cannot be trained: the text is too small for 9,000"
    ) as caught:
        train_sentencepiece(few, 9000)
    largest = int(str(caught.value).rpartition("--vocab-size ")[2].rstrip(")"))
    assert train_sentencepiece(few, largest).vocab_size == largest
    with pytest.raises(DataError, match=f"the largest number that works is {largest}"):
        train_sentencepiece(few, largest + 1)


def test_a_vocabulary_that_is_too_small_is_refused_with_the_size_that_works() -> None:
    with pytest.raises(DataError, match="100 tokens cannot hold") as caught:
        train_sentencepiece(TEXTS, 100)
    smallest = int(str(caught.value).rpartition("--vocab-size ")[2].rstrip(")"))
    assert train_sentencepiece(TEXTS, smallest).vocab_size == smallest
    with pytest.raises(DataError, match=f"the smallest number that works is {smallest}"):
        train_sentencepiece(TEXTS, smallest - 1)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n"]])
def test_no_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match="^the vocabulary cannot be trained: there is no text$"):
        train_sentencepiece(texts, 300)


def test_a_model_with_other_specials_is_refused() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCE.splitlines()), model_writer=model, vocab_size=500, minloglevel=2
    )
    with pytest.raises(
        DataError, match=r"^my.model: <s>, <pad>, .* have the numbers 1, -1, 2, 0 instead of 0, 1, 2, 3; "
    ):
        SentencepieceTokenizer(model.getvalue(), "my.model")


@pytest.mark.parametrize("data", [b"", b"text", bytes(100)])
def test_other_files_are_no_model(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^my.model: not a sentencepiece model$"):
        SentencepieceTokenizer(data, "my.model")
