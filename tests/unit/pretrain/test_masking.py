"""Masks as the loader's workers make them: keys decide, and nothing else does."""

import dataclasses

import pytest
import torch
from torch import Tensor

from data_pipelines.errors import DataError
from model.config import AudioConfig, ImageConfig, TextConfig
from model.sections import MaskConfig, ModalityConfig
from pretrain.masking import ModelMasking, masking_of
from pretrain.recipes.registry import recipe

IMAGE = ImageConfig(image_size=28, patch_size=4, num_views=3, mask=MaskConfig(prob=0.7, adjust=0.07, inverse=True))
AUDIO = AudioConfig(num_views=3, mask=MaskConfig(prob=0.5, adjust=0.05, length=5))
TEXT = TextConfig(num_views=3, mask=MaskConfig(kind="random", prob=0.48, length=1))
SIDES = [(IMAGE, 28, 49, 35), (AUDIO, 32_000, 99, 49), (TEXT, 64, 64, 31)]
"""Side of a model, length of its input, tokens of that, and how many of them go: facts 1.4, int() as there."""


def masks(side: ModalityConfig, keys: list[int], length: int) -> Tensor:
    return ModelMasking(side).masks(keys, [length] * len(keys))


@pytest.mark.parametrize(("side", "length", "num_tokens", "num_removed"), SIDES)
def test_shape_and_number_of_removed_tokens(
    side: ModalityConfig, length: int, num_tokens: int, num_removed: int
) -> None:
    found = masks(side, [1, 2, 3, 4], length)
    assert found.dtype == torch.bool and found.shape == (4, 3, num_tokens)
    assert (found.sum(dim=-1) == num_removed).all()
    assert ModelMasking(side).num_tokens(length) == num_tokens


@pytest.mark.parametrize(("side", "length", "num_tokens", "num_removed"), SIDES)
def test_the_key_of_a_sample_decides_whatever_its_batch(
    side: ModalityConfig, length: int, num_tokens: int, num_removed: int
) -> None:
    together = masks(side, [7, 8, 9], length)
    torch.manual_seed(1)  # no global generator takes part
    turned = masks(side, [9, 7], length)
    assert torch.equal(turned[0], together[2]) and torch.equal(turned[1], together[0])
    rows = together.flatten(0, 1)
    assert len(rows.unique(dim=0)) == len(rows), "views of a sample and samples differ"


def test_padding_changes_no_block() -> None:
    """The reference masks the whole padded length; equal counts in every row follow."""
    padded = ModelMasking(AUDIO).masks([5, 6], [32_000, 16_000])
    assert torch.equal(padded, masks(AUDIO, [5, 6], 32_000))


def test_a_padded_length_beyond_the_longest_sample() -> None:
    """Text is padded to the length of all samples."""
    assert torch.equal(ModelMasking(TEXT).masks([5, 6], [40, 20], 64), masks(TEXT, [5, 6], 64))
    spans = ModelMasking(dataclasses.replace(TEXT, mask=MaskConfig(kind="span", prob=0.5, length=5)))
    found = spans.masks([5, 6], [40, 20], 64)
    assert found.shape == (2, 3, 64) and torch.equal(found[..., :40], spans.masks([5, 6], [40, 20]))
    assert not found[..., 40:].any() and not found[1, :, 20:].any()


def test_spans_that_cover_a_whole_sample_are_bad_data() -> None:
    spans = ModelMasking(dataclasses.replace(TEXT, mask=MaskConfig(kind="span", prob=0.5, length=5)))
    with pytest.raises(DataError, match=r"mask.prob 0.5: spans of 5 cover all 2 tokens"):
        spans.masks(range(8), [2] * 8, 64)  # some begin at the first token


@pytest.mark.parametrize("add_spans", [False, True])
def test_spans_are_made_equal_over_the_batch(add_spans: bool) -> None:
    """And heed padding: unless tokens are added, none beyond a sample's end goes."""
    mask = MaskConfig(kind="span", prob=0.5, length=5, add_spans=add_spans)
    masking = ModelMasking(dataclasses.replace(AUDIO, mask=mask))
    lengths, keys = [32_000, 24_000, 16_000], [3, 4, 5]
    found = masking.masks(keys, lengths)
    counts = found.sum(dim=-1)
    assert found.shape == (3, 3, 99) and counts.unique().numel() == 1
    alone = [
        masking.masks([key], [length]).sum(dim=-1).unique().item() for key, length in zip(keys, lengths, strict=True)
    ]
    assert (counts[0, 0] >= max(alone)) if add_spans else (counts[0, 0] <= min(alone))
    if not add_spans:
        for row, length in zip(found, lengths, strict=True):
            assert not row[:, masking.num_tokens(length) :].any()
    assert torch.equal(masking.masks(keys, lengths), found)
    assert not torch.equal(masking.masks([13, 14, 15], lengths), found)


@pytest.mark.parametrize(
    ("name", "modality", "length", "num_removed"),
    [
        ("image-base", "image", 224, 157),
        ("audio-base", "audio", 80_000, 124),
        ("audio-large", "audio", 80_000, 136),
        ("text-base", "text", 512, 246),
        ("text-large", "text", 512, 256),
    ],
)
def test_recipes_mask_what_the_reference_masks(name: str, modality: str, length: int, num_removed: int) -> None:
    found = masking_of(recipe(name).model, modality).masks([1], [length])
    assert (found.sum(dim=-1) == num_removed).all()
