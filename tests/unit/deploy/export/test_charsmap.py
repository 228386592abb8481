"""``tokenizer.json`` of a sentencepiece model that normalises characters gives the model's own tokens."""

import base64
import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from data_pipelines.tokenizers.sentencepiece_model import FILE_NAME, SentencepieceTokenizer
from deploy.export.charsmap import read_rules
from deploy.export.tokenizer_json import tokenizer_json

CORPUS = (Path(__file__).parents[4] / "LICENSE").read_text(encoding="utf-8")
RESERVED = range(0xFDD0, 0xFDD2)
PLANES = [
    range(0x20, 0x7F),
    range(0x20),
    range(0xA0, 0x250),
    range(0x300, 0x370),  # combining marks
    range(0x600, 0x700),
    range(0x1100, 0x1200),  # Hangul in parts
    range(0x1E00, 0x2100),
    range(0x3040, 0x3100),
    range(0xAC00, 0xAC40),
    range(0xF900, 0xFA00),  # ideographs that stand for others
    range(0xFF00, 0xFFEF),  # half and full width
    [code for code in range(0x110000) if not 0xD800 <= code < 0xE000 and code not in RESERVED],
]


def trained(rule: str) -> SentencepieceTokenizer:
    model, lines = io.BytesIO(), iter(line for line in CORPUS.splitlines() if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        normalization_rule_name=rule,
        **{"vocab_size": 400, "bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3},
        **{"byte_fallback": True, "num_threads": 1, "minloglevel": 2},
    )
    return SentencepieceTokenizer(model.getvalue(), rule)


def hard_texts(sequences: list[str], number: int) -> list[str]:
    """Characters of one to three planes, and what sentencepiece has rules for, in any order."""
    generator = random.Random(0)
    texts = []
    for _ in range(number):
        planes = generator.sample(PLANES, generator.choice([1, 2, 3]))
        parts = [
            generator.choice(sequences) if generator.random() < 0.3 else chr(generator.choice(generator.choice(planes)))
            for _ in range(generator.randint(1, 12))
        ]
        texts.append("".join(parts))
    return texts


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf"])
def test_hard_texts(tmp_path: Path, rule: str) -> None:
    ours = trained(rule)
    (tmp_path / FILE_NAME).write_bytes(ours.files[FILE_NAME])
    description = tokenizer_json(ours, tmp_path)
    assert isinstance(description, dict)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(description))
    steps = {step["type"]: step for step in description["normalizer"]["normalizers"]}
    sequences = sorted(read_rules(base64.b64decode(steps["Precompiled"]["precompiled_charsmap"])))
    assert len(sequences) > 200_000
    for text in [*hard_texts(sequences, 1000), *random.Random(1).sample(sequences, 2000)]:
        found = theirs.encode(f"a {text}b", add_special_tokens=False).ids
        assert found == ours.encode(f"a {text}b"), ascii(text)
