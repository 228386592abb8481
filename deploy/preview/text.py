"""Blocks of text: views of each side by side, removed tokens boxed."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from data_pipelines.shards.paths import folder_of
from data_pipelines.tokenizers.base import SPECIALS, Tokenizer
from data_pipelines.tokenizers.load import load_tokenizer
from deploy.preview.drawing import INK, MARGIN, NUM_VIEWS, REMOVED, caption, fitting, font, new_sheet
from deploy.preview.samples import Shown
from pretrain.config import RunConfig

_COLUMN = 500  # pixels
_LINE, _BOX, _SIZE = 19, 16, 12  # height of a line, of the box of a removed token, of the letters
_CAPTION, _SPACE = 26, 22
_SPECIAL = (146, 64, 14)
_BOXED = (150, 155, 166)


class Placed(NamedTuple):
    """A token on the page of a sample."""

    number: int
    """In its block."""
    text: str
    left: float
    width: float
    line: int


def draw_text(config: RunConfig, path: str, samples: Sequence[Shown]) -> Image.Image:
    """Args: the recipe, the folder where samples and tokenizer are from, the samples.

    Raises:
        DataError: if the folder holds no tokenizer.
    """
    tokenizer = load_tokenizer(folder_of(path))
    pages = [place_tokens(token_texts(tokenizer, shown.source[: shown.num_tokens].tolist())) for shown in samples]
    heights = [_CAPTION + _LINE * (1 + page[-1].line) + _SPACE for page in pages]
    width = 2 * MARGIN + NUM_VIEWS * _COLUMN + (NUM_VIEWS - 1) * MARGIN
    sheet, top = new_sheet(width, sum(heights) - _SPACE, *_titles(config, path, samples))
    canvas = ImageDraw.Draw(sheet)
    for shown, page, height in zip(samples, pages, heights, strict=True):
        for view in range(NUM_VIEWS):
            left = MARGIN + view * (_COLUMN + MARGIN)
            removed = shown.mask[view, : shown.num_tokens]
            caption(canvas, left, top, _COLUMN, shown.stored.key, f"view {view + 1}, {shown.num_tokens} tokens")
            _draw_view(canvas, left, top + _CAPTION, page, removed.tolist())
        top += height
    return sheet


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; line feeds as a sign."""
    texts = []
    for before, token in itertools.pairwise([0, *ids]):
        start, both = tokenizer.decode([before]), tokenizer.decode([before, token])
        text = both[len(start) :]
        if token < len(SPECIALS) or not both.startswith(start) or "\ufffd" in text:  # special, or part of a letter
            text = tokenizer.piece(token)
        texts.append("".join(_printable(letter) for letter in text))
    return texts


def _printable(letter: str) -> str:
    return "↵" if letter == "\n" else " " if letter.isspace() else letter if letter.isprintable() else "\ufffd"


def place_tokens(texts: Sequence[str]) -> list[Placed]:
    """Break the text into lines, if possible before words; a line does not begin with the space between words."""
    placed: list[Placed] = []
    left, line = 0.0, 0
    for word in _words(texts):
        if left > 0 and left + sum(_width(text) for _, text in word) > _COLUMN:
            left, line = 0.0, line + 1
        for number, text in word:
            if left > 0 and left + _width(text) > _COLUMN:
                left, line = 0.0, line + 1
            shown = fitting(text, _SIZE, _COLUMN) if _width(text) > _COLUMN else text
            shown = shown if left > 0 else shown.removeprefix(" ")
            placed.append(Placed(number, shown, left, _width(shown), line))
            left += _width(shown)
    return placed


def _width(text: str) -> float:
    return font(_SIZE).getlength(text)


def _words(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Neighbouring tokens of which only the first begins with a space, or follows a line feed."""
    word: list[tuple[int, str]] = []
    for number, text in enumerate(texts):
        if word and (text.startswith(" ") or word[-1][1].endswith("↵") or text in SPECIALS):
            yield word
            word = []
        word.append((number, text))
    yield word


def _titles(config: RunConfig, path: str, samples: Sequence[Shown]) -> tuple[str, str]:
    assert config.model.text is not None
    num_tokens = samples[0].mask.shape[1]
    removed = int(samples[0].mask[0].sum())
    share = 100 * removed / num_tokens
    return (
        f"{config.name} on {path}",
        f"the first {len(samples)} samples of a run: {NUM_VIEWS} of {config.model.text.num_views} views that the "
        f"student reads; {num_tokens - removed} of {num_tokens} tokens stay, {share:.0f} % are removed (grey boxes); "
        f"the teacher reads all",
    )


def _draw_view(
    canvas: ImageDraw.ImageDraw, left: int, top: int, page: Sequence[Placed], removed: Sequence[bool]
) -> None:
    for token in page:
        x, y = left + token.left, top + token.line * _LINE
        if removed[token.number]:
            canvas.rectangle((x, y, x + max(token.width - 1.5, 0), y + _BOX - 1), REMOVED)
        colour = _BOXED if removed[token.number] else _SPECIAL if token.text in SPECIALS else INK
        canvas.text((x, y), token.text, colour, font(_SIZE))
