"""What the previews of all modalities look like: paper, ink, fonts, a header."""

import functools
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (255, 255, 255), (28, 32, 40), (120, 126, 138)
REMOVED = (226, 229, 235)
"""Covers what a view lacks."""
MARGIN = 28
NUM_VIEWS = 3
"""Views that are shown of every sample."""
_HEADER_HEIGHT = 74


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of all text, ``size`` pixels high: one with the letters of many languages."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def new_sheet(width: int, body_height: int, title: str, subtitle: str) -> tuple[Image.Image, int]:
    """A sheet with a header.

    Returns:
        The sheet, and the top of its body in pixels.
    """
    sheet = Image.new("RGB", (width, _HEADER_HEIGHT + body_height + MARGIN // 2), PAPER)
    canvas = ImageDraw.Draw(sheet)
    canvas.text((MARGIN, 17), fitting(title, 18, width - 2 * MARGIN), INK, font(18))
    canvas.text((MARGIN, 44), fitting(subtitle, 12, width - 2 * MARGIN), FAINT, font(12))
    return sheet, _HEADER_HEIGHT


def caption(canvas: ImageDraw.ImageDraw, left: int, top: int, width: float, name: str, remark: str) -> None:
    """A line of a name and a remark; the name is shortened for the remark, but a long remark for the name."""
    remark = fitting(remark, 12, max(width / 2, width - font(12).getlength(f"{name}   ")))
    name = fitting(name, 12, width - font(12).getlength(f"   {remark}"))
    canvas.text((left, top), name, INK, font(12))
    canvas.text((left + font(12).getlength(f"{name}   "), top), remark, FAINT, font(12))


def fitting(text: str, size: int, width: float) -> str:
    """The text on one line, its middle left out if it is too wide."""
    text = " ".join(text.split())
    shown, dropped = text, 0
    while shown and font(size).getlength(shown) > width:
        dropped += 2
        half = (len(text) - dropped) // 2
        shown = f"{text[:half]}...{text[-half:]}" if half > 0 else ""
    return shown
