"""A tokenizer from its files, whichever kind it is."""

from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.tokenizers import gpt2_bpe, sentencepiece_model
from data_pipelines.tokenizers.base import Tokenizer
from data_pipelines.tokenizers.gpt2_bpe import Gpt2BpeTokenizer
from data_pipelines.tokenizers.sentencepiece_model import SentencepieceTokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.

    Args:
        path: a sentencepiece model; or a folder that holds ``tokenizer.model``, or GPT-2's ``encoder.json`` and
            ``vocab.bpe`` with fairseq's ``dict.txt``, as the folders that ``d2v prepare text`` writes do.
    Raises:
        DataError: if there is none, or its files are damaged.
    """
    if not path.exists():
        raise DataError(f"{path}: does not exist; a tokenizer is a sentencepiece model, or a folder")
    if path.is_file():
        return SentencepieceTokenizer(_read(path), str(path))
    model = path / sentencepiece_model.FILE_NAME
    present = [name for name in gpt2_bpe.FILE_NAMES if (path / name).exists()]
    if model.exists() and not present:
        return SentencepieceTokenizer(_read(model), str(model))
    if len(present) == len(gpt2_bpe.FILE_NAMES) and not model.exists():
        return Gpt2BpeTokenizer({name: _read(path / name) for name in gpt2_bpe.FILE_NAMES}, path)
    found = [model.name] * model.exists() + present
    raise DataError(
        f"{path}: holds {' and '.join(found) or 'no tokenizer'}; put there either {model.name} (sentencepiece) "
        f"or all of {', '.join(gpt2_bpe.FILE_NAMES)} (GPT-2)"
    )


def stored_vocab_size(folder: Path) -> int | None:
    """Tokens of the vocabulary that a folder of shards was written with; None if it holds no tokenizer.

    Raises:
        DataError: if the tokenizer is damaged.
    """
    names = (sentencepiece_model.FILE_NAME, *gpt2_bpe.FILE_NAMES)
    return load_tokenizer(folder).vocab_size if any((folder / name).exists() for name in names) else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
