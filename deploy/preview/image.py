"""Contact sheet of images: each crop, then masked views of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_pipelines.config import ImageSourceConfig
from data_pipelines.shards.manifest import read_classes
from deploy.preview.drawing import MARGIN, NUM_VIEWS, REMOVED, caption, new_sheet
from deploy.preview.samples import Shown
from pretrain.config import RunConfig

_NUM_COLUMNS = 2
_TILE = 140  # pixels, about
_GAP = 6
_CAPTION = 26


def draw_images(config: RunConfig, path: str, samples: Sequence[Shown]) -> Image.Image:
    """Args: the recipe, where the samples are from, the samples."""
    assert config.model.image is not None
    assert config.data.image is not None
    grid_size, patch_size = config.model.image.grid_size, config.model.image.patch_size
    rows = [_tiles(one, config.data.image, grid_size, patch_size) for one in samples]
    names = read_classes(Path(path))
    labels = [one.stored.label for one in samples]
    remarks = ["" if label is None else names.get(label, f"class {label}") for label in labels]
    return _sheet(rows, [one.stored.key for one in samples], remarks, *_titles(config, path, len(samples)))


def _tiles(shown: Shown, config: ImageSourceConfig, grid_size: int, patch_size: int) -> list[Image.Image]:
    """The crop, then views of it whose removed patches are covered."""
    pixels = _pixels(shown.source, config)
    tiles = [_tile(pixels)]
    for view in shown.mask[:NUM_VIEWS]:
        covered = view.reshape(grid_size, grid_size).repeat(patch_size, axis=0).repeat(patch_size, axis=1)
        tiles.append(_tile(np.where(covered[..., None], np.array(REMOVED, np.uint8), pixels)))
    return tiles


def _pixels(source: NDArray[np.generic], config: ImageSourceConfig) -> NDArray[np.uint8]:
    """Undo the normalisation: (C, H, W) -> (H, W, 3)."""
    values = source.transpose(1, 2, 0) * np.array(config.std) + np.array(config.mean)
    return np.broadcast_to(np.round(values.clip(0, 1) * 255).astype(np.uint8), (*values.shape[:2], 3))


def _tile(pixels: NDArray[np.uint8]) -> Image.Image:
    """About ``_TILE`` pixels wide: small images in whole multiples, so that single pixels can be seen."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.width <= _TILE:
        side = image.width * (_TILE // image.width)
        return image.resize((side, side), Image.Resampling.NEAREST)
    return image.resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def _titles(config: RunConfig, path: str, num_samples: int) -> tuple[str, str]:
    image = config.model.image
    assert image is not None
    removed = 100 * (1 - image.num_kept / image.num_tokens)
    return (
        f"{config.name} on {path}",
        f"the first {num_samples} samples of a run: the crop the teacher sees, then {NUM_VIEWS} of "
        f"{image.num_views} views that the student sees; {image.num_kept} of {image.num_tokens} patches stay, "
        f"{removed:.0f} % are removed",
    )


def _sheet(
    rows: list[list[Image.Image]], names: Sequence[str], remarks: Sequence[str], title: str, subtitle: str
) -> Image.Image:
    side = rows[0][0].width
    row_width = (1 + NUM_VIEWS) * side + (NUM_VIEWS + 1) * _GAP  # twice the gap after the crop
    row_height = side + _CAPTION + _GAP
    width = 2 * MARGIN + _NUM_COLUMNS * row_width + (_NUM_COLUMNS - 1) * MARGIN
    sheet, begin = new_sheet(width, -(-len(rows) // _NUM_COLUMNS) * row_height, title, subtitle)
    canvas = ImageDraw.Draw(sheet)
    for number, (row, name, remark) in enumerate(zip(rows, names, remarks, strict=True)):
        left = MARGIN + number % _NUM_COLUMNS * (row_width + MARGIN)
        top = begin + number // _NUM_COLUMNS * row_height
        for place, tile in enumerate(row):
            sheet.paste(tile, (left + place * (side + _GAP) + (_GAP if place else 0), top))
        caption(canvas, left, top + side + 4, row_width, name, remark)
    return sheet
