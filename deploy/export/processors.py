"""What turns files into the inputs of an exported model: preprocessor_config.json, tokenizer files."""

import json
from pathlib import Path
from typing import Any

from data_pipelines.config import AudioSourceConfig, ImageSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.shards.paths import folder_of
from data_pipelines.tokenizers.base import Tokenizer
from data_pipelines.tokenizers.load import load_tokenizer
from deploy.export.heads import Head
from deploy.export.tokenizer_json import tokenizer_json
from pretrain.config import RunConfig
from pretrain.errors import RunError

_TOKENS_IN_ORDER = ("<pad>", "<s>", "</s>", "<unk>", "|")
"""Of fairseq's letters the blank, three specials and the end of a word."""
_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def write_processors(
    folder: Path, config: RunConfig, modality: str, head: Head | None, tokenizer: Path | None
) -> str | None:
    """Write the files that a modality needs.

    Args:
        folder: of the export.
        config: the run's.
        modality: which.
        head: what stands on the encoder; a CTC head needs its letters.
        tokenizer: of text, a folder or file as ``load_tokenizer`` reads; None looks into the folder of the data.
    Returns:
        What is missing and why, or None.
    Raises:
        RunError, DataError: if a tokenizer is given that cannot be used.
    """
    source = config.data.sources[modality]
    if isinstance(source, ImageSourceConfig):
        write_image_processor(source, folder)
        return None
    if isinstance(source, AudioSourceConfig):
        write_feature_extractor(source, folder)
        return write_letters(head, folder) if head is not None and head.kind == "ctc" else None
    try:
        found = load_tokenizer(tokenizer or folder_of(config.data.path_of("text")))
    except DataError as error:
        if tokenizer is not None:
            raise
        return f"no tokenizer: {error}; --tokenizer names another place"
    return write_tokenizer(found, config, folder)


def write_image_processor(source: ImageSourceConfig, folder: Path) -> None:
    """Write preprocessor_config.json: the evaluation transform as transformers' Bit processor does it."""
    content = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": source.size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": source.size, "width": source.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(source.mean),
        "image_std": list(source.std),
        "do_convert_rgb": source.channels == 3,
    }
    _write_json(folder / "preprocessor_config.json", content)


def write_feature_extractor(source: AudioSourceConfig, folder: Path) -> None:
    """Write preprocessor_config.json: each recording to mean 0 and variance 1, padded with zeros."""
    content = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": source.sample_rate,
        "do_normalize": source.normalize,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    _write_json(folder / "preprocessor_config.json", content)


def write_letters(head: Head, folder: Path) -> str | None:
    """Write the files of a tokenizer that reads the outputs of a CTC head."""
    numbered = [*_TOKENS_IN_ORDER, *(f"<{number}>" for number in range(len(_TOKENS_IN_ORDER), head.num_outputs))]
    letters = head.labels or numbered[: head.num_outputs]
    _write_json(folder / "vocab.json", {letter: number for number, letter in enumerate(letters)})
    content = _TOKENS | {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "processor_class": "Wav2Vec2Processor",
        "word_delimiter_token": "|",
        "do_lower_case": False,
    }
    _write_json(folder / "tokenizer_config.json", content)
    return None if head.labels else "letters are numbers: the checkpoint does not name them; import it with --letters"


def write_tokenizer(tokenizer: Tokenizer, config: RunConfig, folder: Path) -> str | None:
    """Write a tokenizer of text: its own files, and tokenizer.json, by which transformers does the same."""
    text = config.model.text
    assert text is not None
    if tokenizer.vocab_size > text.vocab_size:
        raise RunError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model knows {text.vocab_size:,}; "
            "--tokenizer names another one"
        )
    for name, data in tokenizer.files.items():
        (folder / name).write_bytes(data)
    description = tokenizer_json(tokenizer, folder)
    if isinstance(description, str):
        return f"no tokenizer.json: {description}"
    (folder / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    mask = {"mask_token": "<mask>"} if tokenizer.piece(tokenizer.vocab_size - 1) == "<mask>" else {}
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_TOKENS,
        "cls_token": "<s>",
        "sep_token": "</s>",
        **mask,
        "model_max_length": text.max_positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", content)
    return None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
