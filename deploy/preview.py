"""Contact sheet of shards: what a recipe's crops and masks make of the samples."""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data_pipelines.atomic import replacing
from data_pipelines.batching import Batch
from data_pipelines.config import ImageTransformConfig
from data_pipelines.loader import build_loader
from data_pipelines.reader import Reader
from data_pipelines.shards.manifest import read_classes
from pretrain.config import RunConfig
from pretrain.recipes.registry import recipe
from pretrain.task import mask_function

_NUM_VIEWS = 3
_NUM_COLUMNS = 2
_TILE = 140  # pixels, about
_GAP = 6
_MARGIN = 28
_CAPTION = 26
_HEADER = 74
_PAPER, _INK, _FAINT, _REMOVED = (255, 255, 255), (28, 32, 40), (120, 126, 138), (226, 229, 235)


def write_preview(path: str, recipe_name: str, num_samples: int, out: Path) -> None:
    """Write a PNG of the first samples that a recipe's run would see: each crop, then masked views of it.

    Args:
        path: shards, as ``data.path``.
        recipe_name: transforms, masks and seed are those of the recipe.
        num_samples: samples on the sheet.
        out: the PNG.
    Raises:
        RunError: for an unknown recipe.
        DataError: if shards cannot be used, or ``out`` cannot be written.
    """
    config = recipe(recipe_name)
    batch = _first_batch(config, path, num_samples)
    tiles = [_tiles(source, mask, config) for source, mask in zip(batch.source, batch.mask, strict=True)]
    sheet = _draw(tiles, _captions(path, batch), *_titles(config, path, num_samples))
    with replacing(out) as stream:
        sheet.save(stream, "PNG", optimize=True)


def _first_batch(config: RunConfig, path: str, num_samples: int) -> Batch:
    loader = build_loader(
        dataclasses.replace(config.data, path=path, num_workers=0),
        seed=config.training.seed,
        mask_function=mask_function(config.model),
        dp_rank=0,
        dp_size=1,
        microbatch_size=num_samples,
        num_microbatches=1,
    )
    batch = next(loader)
    loader.close()
    return batch


def _tiles(source: Tensor, mask: Tensor, config: RunConfig) -> list[Image.Image]:
    """The crop, then views of it whose removed patches are covered."""
    pixels = _pixels(source.numpy(), config.data.image)
    grid_size, patch_size = config.model.image.grid_size, config.model.image.patch_size
    tiles = [_tile(pixels)]
    for view in mask[:_NUM_VIEWS].numpy():
        covered = view.reshape(grid_size, grid_size).repeat(patch_size, axis=0).repeat(patch_size, axis=1)
        tiles.append(_tile(np.where(covered[..., None], np.array(_REMOVED, np.uint8), pixels)))
    return tiles


def _pixels(source: NDArray[np.float32], config: ImageTransformConfig) -> NDArray[np.uint8]:
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


def _captions(path: str, batch: Batch) -> list[tuple[str, str]]:
    """Key and class of every sample, by name where the folder tells it."""
    reader = Reader(path)
    samples = [reader.read(int(number)) for number in batch.sample]
    reader.close()
    names = read_classes(Path(path))
    labels = ["" if sample.label is None else names.get(sample.label, f"class {sample.label}") for sample in samples]
    return [(sample.key, label) for sample, label in zip(samples, labels, strict=True)]


def _titles(config: RunConfig, path: str, num_samples: int) -> tuple[str, str]:
    image = config.model.image
    removed = 100 * (1 - image.num_kept / image.num_tokens)
    return (
        f"{config.name} on {path}",
        f"the first {num_samples} samples of a run: the crop the teacher sees, then {_NUM_VIEWS} of "
        f"{config.model.num_views} views that the student sees; {image.num_kept} of {image.num_tokens} patches stay, "
        f"{removed:.0f} % are removed",
    )


def _draw(tiles: list[list[Image.Image]], captions: list[tuple[str, str]], title: str, subtitle: str) -> Image.Image:
    side = tiles[0][0].width
    row_width = (1 + _NUM_VIEWS) * side + (_NUM_VIEWS + 1) * _GAP  # twice the gap after the crop
    row_height = side + _CAPTION
    num_rows = -(-len(tiles) // _NUM_COLUMNS)
    width = 2 * _MARGIN + _NUM_COLUMNS * row_width + (_NUM_COLUMNS - 1) * _MARGIN
    sheet = Image.new("RGB", (width, _HEADER + num_rows * (row_height + _GAP) + _MARGIN // 2), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    canvas.text((_MARGIN, 18), _fitting(title, 19, width - 2 * _MARGIN), _INK, ImageFont.load_default(19))
    canvas.text((_MARGIN, 45), _fitting(subtitle, 13, width - 2 * _MARGIN), _FAINT, ImageFont.load_default(13))
    small = ImageFont.load_default(12)
    for number, (row, (key, label)) in enumerate(zip(tiles, captions, strict=True)):
        left = _MARGIN + number % _NUM_COLUMNS * (row_width + _MARGIN)
        top = _HEADER + number // _NUM_COLUMNS * (row_height + _GAP)
        for place, tile in enumerate(row):
            sheet.paste(tile, (left + place * (side + _GAP) + (_GAP if place else 0), top))
        key = _fitting(key, 12, row_width - canvas.textlength(f"   {label}", small))
        canvas.text((left, top + side + 4), key, _INK, small)
        canvas.text((left + canvas.textlength(f"{key}   ", small), top + side + 4), label, _FAINT, small)
    return sheet


def _fitting(text: str, size: int, width: float) -> str:
    """The text, its middle left out if it is too wide."""
    font = ImageFont.load_default(size)
    shown, dropped = text, 0
    while font.getlength(shown) > width:
        dropped += 2
        half = (len(text) - dropped) // 2
        shown = f"{text[:half]}...{text[-half:]}"
    return shown
