"""The files beside an exported model make the same inputs as our own transforms and tokenizers."""

import dataclasses
import io
from pathlib import Path

import numpy
import pytest
import sentencepiece
import soundfile
import torch
from PIL import Image
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

from data_pipelines.config import AudioSourceConfig, DataConfig, ImageSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.tokenizers.base import Tokenizer
from data_pipelines.tokenizers.load import load_tokenizer
from data_pipelines.tokenizers.sentencepiece_model import train_sentencepiece
from data_pipelines.transforms.audio import load_audio
from data_pipelines.transforms.image import load_image
from deploy.export.heads import Head
from deploy.export.processors import write_feature_extractor, write_image_processor, write_processors
from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.recipes.registry import RECIPES
from tests.unit.data_pipelines.tokenizers.gpt2 import write_files
from tests.unit.deploy.export.fairseq_files import LETTERS

CORPUS = (Path(__file__).parents[4] / "LICENSE").read_text(encoding="utf-8")
TEXTS = [
    "the cat sat on the mat under this License.",
    CORPUS[:3000],
    " leading and  double   spaces ",
    "Didn't a naïve dog\nsit?\n\n",
    "unseen: 你好 🙂 Ω",
    "12 tabs\t\t",
    "a",
    " ",
    "▁under▁score",
    "\u200bno width\ufeff, ｆｕｌｌ, ﬁne, e\u0301, \u00a0, \u3000, \x00\x01, 🙂🙂",
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 61])
def test_images(tmp_path: Path, channels: int, side: int) -> None:
    config = ImageSourceConfig(size=28, channels=channels, mean=(0.25,) * channels, std=(0.3,) * channels)
    write_image_processor(config, tmp_path)
    shape = (side, side, 3) if channels == 3 else (side, side)
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, shape, dtype=numpy.uint8))
    file = io.BytesIO()
    image.save(file, "png")
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="np")["pixel_values"][0]
    numpy.testing.assert_allclose(theirs, load_image(file.getvalue(), config), atol=1e-6)


def test_waveforms(tmp_path: Path) -> None:
    """Two recordings of different length, padded; transformers adds 1e-7 to a variance, we and fairseq 1e-5."""
    config = AudioSourceConfig()
    write_feature_extractor(config, tmp_path)
    generator = numpy.random.default_rng(0)
    waves = [(0.3 * generator.standard_normal(length) + 0.1).clip(-1, 1) for length in (3000, 2000)]
    files = [io.BytesIO() for _ in waves]
    for wave, file in zip(waves, files, strict=True):
        soundfile.write(file, wave, 16_000, format="WAV", subtype="FLOAT")
    ours = [load_audio(file.getvalue(), config) for file in files]
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    theirs = extractor(waves, sampling_rate=16_000, padding=True, return_tensors="np")
    assert theirs["attention_mask"].sum(axis=1).tolist() == [3000, 2000]
    for row, wave in enumerate(ours):
        numpy.testing.assert_allclose(theirs["input_values"][row, : len(wave)], wave, atol=1e-3)
    assert (theirs["input_values"][1, 2000:] == 0).all()


@pytest.fixture(scope="module", params=["sentencepiece", "bpe", "bpe-unknown", "gpt2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "gpt2":
        write_files(folder, CORPUS)
    elif request.param.startswith("bpe"):
        train_bpe(folder / "tokenizer.model", byte_fallback=request.param == "bpe")
    else:
        trained = train_sentencepiece([CORPUS], 400)
        for name, content in trained.files.items():
            (folder / name).write_bytes(content)
    return load_tokenizer(folder)


def train_bpe(path: Path, **options: object) -> None:
    """As others train theirs."""
    numbers = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}
    kept = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    rest = {"vocab_size": 400, "model_type": "bpe", "minloglevel": 2, "num_threads": 1}
    with path.open("wb") as stream:
        lines = iter(line for line in CORPUS.splitlines() if line)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=stream, **numbers, **kept, **rest, **options
        )


def test_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "data").mkdir()
    for name, content in tokenizer.files.items():
        (tmp_path / "data" / name).write_bytes(content)
    config = text_run(tokenizer.vocab_size, str(tmp_path / "data"))
    out = tmp_path / "out"
    out.mkdir()
    assert write_processors(out, config, "text", None, None) is None
    theirs = AutoTokenizer.from_pretrained(out)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == [0, *ids, 2], text
        assert theirs.decode([0, *ids, 2], skip_special_tokens=True) == tokenizer.decode(ids), text
    pair = theirs("the cat", "a dog")["input_ids"]
    assert pair == [0, *tokenizer.encode("the cat"), 2, 2, *tokenizer.encode("a dog"), 2]
    padded = theirs([TEXTS[0], "a"], padding=True)
    assert list(padded) == ["input_ids", "attention_mask"]
    assert padded["input_ids"][1][-1] == 1 and padded["attention_mask"][1][-1] == 0
    assert (theirs.model_max_length, len(theirs)) == (64, tokenizer.vocab_size)
    assert load_tokenizer(out).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def text_run(vocab_size: int, path: str = "") -> RunConfig:
    tiny = RECIPES["text-tiny"]()
    assert tiny.model.text is not None
    text = dataclasses.replace(tiny.model.text, vocab_size=vocab_size)
    return dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, text=text),
        data=DataConfig(path=path, text=tiny.data.text),
    )


def test_tokenizer_that_is_missing_or_wrong(tmp_path: Path, tokenizer: Tokenizer) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.mkdir()
    said = write_processors(out, text_run(2000, str(other)), "text", None, None)
    assert said is not None and said.startswith("no tokenizer: ") and "--tokenizer" in said
    assert list(out.iterdir()) == []
    with pytest.raises(DataError, match="holds no tokenizer"):
        write_processors(out, text_run(2000), "text", None, other)
    for name, content in tokenizer.files.items():
        (other / name).write_bytes(content)
    with pytest.raises(RunError, match=f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows 99"):
        write_processors(out, text_run(99), "text", None, other)


def test_letters_read_what_a_ctc_head_writes(tmp_path: Path) -> None:
    labels = ("<pad>", "<s>", "</s>", "<unk>", *LETTERS)
    head = Head(kind="ctc", num_outputs=len(labels), labels=labels)
    config = RECIPES["audio-tiny"]()
    assert write_processors(tmp_path, config, "audio", head, None) is None
    reader = AutoTokenizer.from_pretrained(tmp_path)
    spelled = "HH_E_LL_LLO_|_YOU"  # the blank between two L keeps both
    ids = torch.tensor([0 if letter == "_" else labels.index(letter) for letter in spelled])
    assert reader.decode(ids) == "HELLO YOU"
    said = write_processors(tmp_path, config, "audio", dataclasses.replace(head, labels=(), num_outputs=9), None)
    assert said is not None and said.startswith("letters are numbers: the checkpoint does not name them")
    assert AutoTokenizer.from_pretrained(tmp_path).decode(torch.tensor([5, 5, 0, 5, 4, 8])) == "<5><5> <8>"
