"""``d2v shards preview``: a picture of what a recipe's run sees."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from data_pipelines.atomic import replacing
from deploy.preview.audio import draw_audio
from deploy.preview.image import draw_images
from deploy.preview.samples import Shown, first_samples
from deploy.preview.text import draw_text
from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.recipes.registry import recipe


class Kind(NamedTuple):
    """How samples of a modality are shown."""

    draw: Callable[[RunConfig, str, Sequence[Shown]], Image]
    num_samples: int
    """If nobody says how many."""


KINDS = {"image": Kind(draw_images, 16), "audio": Kind(draw_audio, 6), "text": Kind(draw_text, 3)}


def write_preview(path: str, recipe_name: str, out: Path, *, modality: str | None, num_samples: int | None) -> int:
    """Write a PNG of the first samples that a recipe's run would see, with masked views of each.

    Args:
        path: shards, as ``data.path``.
        recipe_name: transforms, masks and seed are those of the recipe.
        out: the PNG.
        modality: of the shards; None is enough for a recipe of one modality.
        num_samples: samples in the picture; None for a number that suits the modality.
    Returns:
        The number of samples.
    Raises:
        RunError: for an unknown recipe, or if it lacks the modality or has several.
        DataError: if shards cannot be used, or ``out`` cannot be written.
    """
    config = recipe(recipe_name)
    modality = _modality(config, modality)
    kind = KINDS[modality]
    samples = first_samples(config, modality, path, num_samples or kind.num_samples)
    picture = kind.draw(config, path, samples)
    with replacing(out) as stream:
        picture.save(stream, "PNG", optimize=True)
    return len(samples)


def _modality(config: RunConfig, wanted: str | None) -> str:
    known = list(config.data.sources)
    if wanted is None and len(known) == 1:
        return known[0]
    if wanted is None:
        raise RunError(f"--modality: {config.name} has {' and '.join(known)}; name one of them")
    if wanted not in known:
        raise RunError(f"--modality: {config.name} has no {wanted}, only {' and '.join(known)}")
    return wanted
