"""Previews: what is grey in the picture is what the masks of the run remove."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_pipelines.config import DataConfig
from data_pipelines.loader import build_loader
from data_pipelines.reader import Reader, Sample
from data_pipelines.tokenizers.base import END, START
from data_pipelines.tokenizers.sentencepiece_model import SentencepieceTokenizer, train_sentencepiece
from deploy.preview import audio, text
from deploy.preview.drawing import INK, MARGIN, NUM_VIEWS, PAPER, REMOVED, fitting, font
from deploy.preview.samples import Shown, first_samples
from deploy.preview.write import write_preview
from model.config import ModelConfig
from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.masking import masking_of
from pretrain.recipes.audio import audio_base
from pretrain.recipes.registry import RECIPES
from pretrain.recipes.tiny import audio_tiny, image_tiny, text_tiny
from tests.unit.data_pipelines.photographs import write_shards
from tests.unit.data_pipelines.speech import write_speech_shards

BODY = 74
"""Height of the header in pixels."""
RATE = 16_000
TEXT = "The student reads what is left.\nThe teacher reads the whole of it, as ever; it is a déjà vu.\n" * 40


def is_removed(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (picture == REMOVED).all(axis=-1)


def test_samples_are_those_of_the_first_step(tmp_path: Path) -> None:
    write_shards(tmp_path)
    config = image_tiny()
    shown = first_samples(config, "image", str(tmp_path), 5)
    loader = build_loader(
        dataclasses.replace(config.data, path=str(tmp_path), num_workers=0),
        "image",
        seed=config.training.seed,
        masking=masking_of(config.model, "image"),
        dp_rank=0,
        dp_size=1,
        microbatch_size=8,
        num_microbatches=1,
    )
    batch, reader = next(loader), Reader(str(tmp_path))
    for place, one in enumerate(shown):
        assert np.array_equal(one.source, batch.source[place])
        assert np.array_equal(one.mask, batch.mask[place])
        assert one.stored == reader.read(int(batch.sample[place]))
        assert one.num_tokens == 49


def test_audio_comes_from_as_many_planned_batches_as_needed(tmp_path: Path) -> None:
    write_speech_shards(tmp_path, [1.2, 1.4, 1.6, 1.8, 1.9] * 2)
    shown = first_samples(audio_tiny(), "audio", str(tmp_path), 7)
    assert len({one.stored.key for one in shown}) == 7
    assert len({len(one.source) for one in shown}) >= 2  # 8 s a batch: four or five of them
    for one in shown:
        assert one.mask.shape == (4, masking_of(audio_tiny().model, "audio").num_tokens(len(one.source)))


def hum(num_samples: int, num_padding: int = 0) -> NDArray[np.float32]:
    waveform = np.sin(np.arange(num_samples) * 0.3).astype(np.float32)
    return np.concatenate([waveform, np.zeros(num_padding, np.float32)])


@pytest.mark.parametrize("num_padding", [0, 8_000])
def test_grey_stretches_are_the_removed_tokens(num_padding: int) -> None:
    config, masking = audio_tiny(), masking_of(audio_tiny().model, "audio")
    num_samples = 24_000
    num_tokens = masking.num_tokens(num_samples)
    mask = masking.masks([3], [num_samples + num_padding])[0].numpy()
    shown = Shown(Sample("a/b", None, {"txt": "déjà vu\n".encode()}), hum(num_samples, num_padding), mask, num_tokens)
    picture = np.asarray(audio.draw_audio(config, "there", [shown, shown]))
    left, right = MARGIN + audio._GUTTER, audio._WIDTH - MARGIN
    assert picture.shape == (BODY + 2 * audio._ROW - audio._SPACE + MARGIN // 2, audio._WIDTH, 3)
    assert config.model.audio is not None
    side = (config.model.audio.receptive_field - 320) / 2  # what a token sees before and after its stretch
    middles = side + 320 * np.arange(num_tokens) + 160
    columns = (left + (right - left) * middles / num_samples).astype(int)
    for row in range(2):
        for view in range(NUM_VIEWS):
            top = BODY + row * audio._ROW + audio._CAPTION + audio._WAVE + audio._BAND_GAP
            top += view * (audio._BAND + audio._BAND_GAP)
            for line in (top + 2, top + audio._BAND // 2, top + audio._BAND - 3):
                assert np.array_equal(is_removed(picture[line, columns]), mask[view, :num_tokens])
    crop = picture[BODY + audio._CAPTION : BODY + audio._CAPTION + audio._WAVE, left:right]
    assert not is_removed(crop).any()
    ink = (crop == INK).all(axis=-1)
    assert ink.any(axis=0).mean() > 0.99  # to the end: padding is not shown
    assert ink.any(axis=1)[3:-3].all()  # and to the full height


def test_stretches_begin_and_end_where_tokens_do() -> None:
    config = audio_base()
    assert config.model.audio is not None
    assert config.data.audio is not None
    scale = audio.scale_of(config.model.audio, config.data.audio)
    assert scale == (0.02, 0.0025)
    removed = np.array([True, True, False, False, True, False, True])
    expected = [(0.0025, 0.04), (0.0825, 0.02), (0.1225, 0.02)]
    assert np.allclose(scale.stretches(removed), expected)
    assert scale.stretches(np.zeros(4, bool)) == []


@pytest.fixture(scope="module")
def tokenizer() -> SentencepieceTokenizer:
    return train_sentencepiece([TEXT], 290)


def test_token_texts_join_to_the_text(tokenizer: SentencepieceTokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert "".join(text.token_texts(tokenizer, ids)) == TEXT.replace("\n", "↵")
    both = text.token_texts(tokenizer, [START, *tokenizer.encode("as ever"), END, *tokenizer.encode("it is")])
    assert "".join(both) == "<s>as ever</s>it is"
    unknown = text.token_texts(tokenizer, tokenizer.encode("ø\t\x07 it"))
    assert "".join(unknown) == "<0xC3><0xB8> \ufffd it"  # bytes of a letter, tab, a sign that cannot be shown


def test_grey_boxes_are_the_removed_tokens(tmp_path: Path, tokenizer: SentencepieceTokenizer) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.files["tokenizer.model"])
    masking = masking_of(text_tiny().model, "text")
    ids = torch.tensor([[START, *tokenizer.encode(TEXT)][:64]])[0].numpy()
    first = Shown(Sample("000000-000000", None, {}), ids, masking.masks([1], [64])[0].numpy(), 64)
    short = first._replace(num_tokens=20, mask=masking.masks([2], [64])[0].numpy())
    picture = np.asarray(text.draw_text(text_tiny(), str(tmp_path), [first, short]))
    top = BODY
    for shown in (first, short):
        page = text.place_tokens(text.token_texts(tokenizer, shown.source[: shown.num_tokens].tolist()))
        assert [token.number for token in page] == list(range(shown.num_tokens))
        for view in range(NUM_VIEWS):
            left = MARGIN + view * (text._COLUMN + MARGIN)
            for token in page:
                if token.width > 3:
                    x, y = int(left + token.left + 1), top + text._CAPTION + token.line * text._LINE
                    colours = picture[y : y + text._BOX, x : x + int(token.width) - 2]
                    assert is_removed(colours[0]).all() == shown.mask[view, token.number]
                    assert (colours[0] == PAPER).all() == (not shown.mask[view, token.number])
        top += text._CAPTION + text._LINE * (1 + page[-1].line) + text._SPACE
    assert top - text._SPACE + MARGIN // 2 == len(picture)


def test_lines_of_text_stay_in_their_column(tokenizer: SentencepieceTokenizer) -> None:
    texts = [*text.token_texts(tokenizer, tokenizer.encode(TEXT)), "W" * 200, " it"]
    page = text.place_tokens(texts)
    assert max(token.left + token.width for token in page) <= text._COLUMN
    assert {token.line for token in page} == set(range(page[-1].line + 1))
    assert page[-2].text.startswith("WWW")
    assert "..." in page[-2].text
    for before, after in itertools.pairwise(page):
        if after.line == before.line:
            assert after.left == before.left + before.width
        else:
            assert after.left == 0
            assert not after.text.startswith(" ")
            starts_a_word = texts[after.number].startswith(" ") or texts[before.number].endswith("↵")
            assert starts_a_word or after.text.startswith("WWW")


def test_captions_are_shortened_to_their_width() -> None:
    long = "word " * 100
    assert fitting("a short\nname", 12, 500) == "a short name"
    assert "..." in fitting(long, 12, 300)
    assert font(12).getlength(fitting(long, 12, 300)) <= 300
    assert fitting(long, 12, 1) == ""


def test_a_recipe_of_several_modalities_needs_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "shards")
    image, written = image_tiny(), text_tiny()
    both = dataclasses.replace(
        image,
        name="both",
        model=ModelConfig(encoder=image.model.encoder, image=image.model.image, text=written.model.text),
        data=DataConfig(image=image.data.image, text=written.data.text),
    )
    monkeypatch.setitem(RECIPES, "both", lambda: both)

    def preview(recipe: str, modality: str | None) -> int:
        return write_preview(
            str(tmp_path / "shards"), recipe, tmp_path / "out.png", modality=modality, num_samples=None
        )

    with pytest.raises(RunError, match="^--modality: both has image and text; name one of them$"):
        preview("both", None)
    with pytest.raises(RunError, match="^--modality: image-tiny has no text, only image$"):
        preview("image-tiny", "text")
    assert preview("both", "image") == 16
    several = (tmp_path / "out.png").read_bytes()
    monkeypatch.setitem(RECIPES, "both", lambda: dataclasses.replace(image, name="both"))
    assert preview("both", None) == 16
    assert (tmp_path / "out.png").read_bytes() == several


def test_all_recipes_can_be_shown() -> None:
    from deploy.preview.write import KINDS
    from deploy.shards import MODALITIES

    configs: list[RunConfig] = [make() for make in RECIPES.values()]
    assert {modality for config in configs for modality in config.data.sources} <= KINDS.keys()
    assert tuple(KINDS) == MODALITIES
