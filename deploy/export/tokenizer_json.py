"""``tokenizer.json`` of the tokenizers library, by which transformers tokenizes text as ``Tokenizer`` does.

Around a text it puts <s> and </s>, between two texts </s></s>, as fairseq does for GLUE.
"""

from pathlib import Path
from typing import Any

from data_pipelines.tokenizers import gpt2_bpe, sentencepiece_model
from data_pipelines.tokenizers.base import END, SPECIALS, START, UNKNOWN, Tokenizer
from deploy.export.charsmap import normalizers

_UNIGRAM, _BPE = 1, 2
"""Types of sentencepiece's models."""
_NORMAL, _USER_DEFINED = 1, 4
"""Types of its pieces."""


def tokenizer_json(tokenizer: Tokenizer, folder: Path) -> dict[str, Any] | str:
    """The content of tokenizer.json, or why there can be none.

    Args:
        tokenizer: whose files lie in ``folder``.
        folder: where its files are.
    """
    pieces = [tokenizer.piece(number) for number in range(tokenizer.vocab_size)]
    if sentencepiece_model.FILE_NAME in tokenizer.files:
        parts = _sentencepiece(pieces, folder / sentencepiece_model.FILE_NAME)
    else:
        parts = _byte_level_bpe(pieces, tokenizer.files[gpt2_bpe.MERGES].decode("utf-8"))
    if isinstance(parts, str):
        return parts
    marked = [number for number, piece in enumerate(pieces) if piece in (*SPECIALS, gpt2_bpe.MASK)]
    added = [_added_token(number, pieces[number]) for number in marked]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added} | parts | _template()


def _added_token(number: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": content} | flags


def _template() -> dict[str, Any]:
    def special(name: str, kind: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    def text(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    start, end = SPECIALS[START], SPECIALS[END]
    single = [special(start), text("A"), special(end)]
    tokens = {name: {"id": name, "ids": [SPECIALS.index(name)], "tokens": [name]} for name in (start, end)}
    pair = [*single, special(end), text("B"), special(end)]
    return {"post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}}


def _byte_level_bpe(pieces: list[str], merges: str) -> dict[str, Any] | str:
    """GPT-2's pairs over fairseq's numbers."""
    pairs = [line.split() for line in merges.removesuffix("\n").split("\n")[1:]]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    missing = sum("".join(pair) not in numbers for pair in pairs)
    if missing:
        return f"{gpt2_bpe.DICTIONARY} lacks {missing:,} of GPT-2's tokens"
    bytes_to_pieces = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": bytes_to_pieces,
        "decoder": bytes_to_pieces,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": SPECIALS[UNKNOWN],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": numbers,
            "merges": pairs,
        },
    }


def _sentencepiece(pieces: list[str], path: Path) -> dict[str, Any] | str:
    """A sentencepiece model; its scores are read by transformers."""
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    proto = SentencePieceExtractor(str(path)).proto
    kinds = {_UNIGRAM: _unigram, _BPE: _bpe}
    if proto.trainer_spec.model_type not in kinds:
        return "only unigram and BPE models of sentencepiece can be written as one"
    if any(piece.type == _USER_DEFINED for piece in proto.pieces):
        return "symbols that users define are matched before all others, which it cannot say"
    rules = proto.normalizer_spec
    undo = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if rules.add_dummy_prefix:
        undo.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(rules)},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": undo},
        "model": kinds[proto.trainer_spec.model_type](pieces, proto),
    }


def _normalizers(rules: Any) -> list[dict[str, Any]]:
    """Sentencepiece's treatment of a text before it is cut."""
    steps = normalizers(rules.precompiled_charsmap) if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if rules.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]


def _unigram(pieces: list[str], proto: Any) -> dict[str, Any]:
    scores = [piece.score for piece in proto.pieces]
    return {
        "type": "Unigram",
        "unk_id": UNKNOWN,
        "vocab": list(zip(pieces, scores, strict=True)),
        "byte_fallback": proto.trainer_spec.byte_fallback,
    }


def _bpe(pieces: list[str], proto: Any) -> dict[str, Any]:
    """Sentencepiece merges any two neighbours that make a piece, the piece of the highest score first."""
    normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in sorted(normal, key=lambda piece: -normal[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": SPECIALS[UNKNOWN],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": proto.trainer_spec.byte_fallback,
        "vocab": {piece: number for number, piece in enumerate(pieces)},
        "merges": [list(pair) for pair in pairs],
    }
