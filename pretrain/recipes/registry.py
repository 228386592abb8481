"""All recipes by name."""

import difflib
from collections.abc import Callable

from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.recipes.audio import audio_base, audio_large
from pretrain.recipes.beyond import audio_1b, image_1b, image_3b, image_7b
from pretrain.recipes.image import image_base, image_huge14, image_huge16, image_large
from pretrain.recipes.multimodal import multimodal_base
from pretrain.recipes.text import text_base, text_large, text_large_1m
from pretrain.recipes.tiny import audio_tiny, image_tiny, multimodal_tiny, text_tiny

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "image-tiny": image_tiny,
    "audio-tiny": audio_tiny,
    "text-tiny": text_tiny,
    "multimodal-tiny": multimodal_tiny,
    "image-base": image_base,
    "image-large": image_large,
    "image-huge16": image_huge16,
    "image-huge14": image_huge14,
    "image-1b": image_1b,
    "image-3b": image_3b,
    "image-7b": image_7b,
    "audio-base": audio_base,
    "audio-large": audio_large,
    "audio-1b": audio_1b,
    "text-base": text_base,
    "text-large": text_large,
    "text-large-1m": text_large_1m,
    "multimodal-base": multimodal_base,
}


def recipe(name: str) -> RunConfig:
    """The complete configuration of a recipe.

    Raises:
        RunError: for an unknown name, with the nearest known one.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(RECIPES)}"
        raise RunError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]()
