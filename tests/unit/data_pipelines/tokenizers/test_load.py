from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.tokenizers.load import load_tokenizer
from data_pipelines.tokenizers.sentencepiece_model import SentencepieceTokenizer, train_sentencepiece
from tests.unit.data_pipelines.tokenizers import gpt2


@pytest.fixture(scope="module")
def tokenizer() -> SentencepieceTokenizer:
    return train_sentencepiece(["a few words of a text, and a few more"], 276)


def test_a_model_file_or_its_folder(tokenizer: SentencepieceTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.files["tokenizer.model"])
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        loaded = load_tokenizer(path)
        assert loaded.files == tokenizer.files
        assert loaded.encode("a few more") == tokenizer.encode("a few more")


def test_a_folder_without_or_with_two_tokenizers_is_refused(tokenizer: SentencepieceTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no tokenizer; put there either tokenizer.model .* dict.txt \(GPT-2\)$"):
        load_tokenizer(tmp_path)
    gpt2.write_files(tmp_path, "a few words", num_merges=3)
    assert load_tokenizer(tmp_path).vocab_size == 4 + 256 + 3 + 1 + 1 + 1
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.files["tokenizer.model"])
    with pytest.raises(DataError, match="holds tokenizer.model and encoder.json and vocab.bpe and dict.txt; put there"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "dict.txt").unlink()
    with pytest.raises(DataError, match="holds encoder.json and vocab.bpe; put there"):
        load_tokenizer(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^/nowhere: does not exist; a tokenizer is"):
        load_tokenizer(Path("/nowhere"))
    (tmp_path / "words.txt").write_text("text")
    with pytest.raises(DataError, match=r"words.txt: not a sentencepiece model$"):
        load_tokenizer(tmp_path / "words.txt")
