"""Block masks of images against the reference: bit for bit at a fixed seed, and in distribution; indices of views."""

import numpy as np
import pytest
import torch

from model.masking import block_masks_2d, split_views
from model.sections import MaskConfig
from pretrain.recipes.registry import recipe
from tests.golden.tables import mask_stats, masks_seeded

RECIPES = {
    "image_base_r0.80_a0.07_b3_14x14": "image-base",
    "image_large_r0.75_a0.10_b3_14x14": "image-large",
    "image_huge14_r0.75_a0.10_b3_16x16": "image-huge14",
}
NUM_MASKS = 2000


def masks_of(name: str, num_masks: int, seed: int) -> torch.Tensor:
    image = recipe(name).model.image
    return block_masks_2d(num_masks, image.grid_size, image.mask, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", ["base", "large"])
def test_bit_equal_to_the_reference(size: str) -> None:
    expected = masks_seeded()[f"block2d_{size}_seed5"].bool()
    assert torch.equal(masks_of(f"image-{size}", len(expected), seed=5), expected)


@pytest.mark.parametrize("key", RECIPES)
def test_distribution_equals_the_references(key: str) -> None:
    """Shares, autocorrelation and whole windows within the sampling error of two sets of 2000 masks."""
    expected, image = mask_stats()[key], recipe(RECIPES[key]).model.image
    masks = masks_of(RECIPES[key], NUM_MASKS, seed=0)
    assert masks.sum(dim=1).unique().tolist() == [int(count) for count in expected["masked_count_hist"]]
    assert image.num_kept == expected["target_kept"]
    grid = masks.view(NUM_MASKS, image.grid_size, image.grid_size).double()
    centred = grid - grid.mean()
    for offset, value in expected["autocorr_dy_dx"].items():
        down, across = map(int, offset.split(","))
        size = image.grid_size
        product = centred[:, : size - down, : size - across] * centred[:, down:, across:]
        assert (product.mean() / centred.square().mean()).item() == pytest.approx(value, abs=0.012), offset
    kept = (~masks).view(NUM_MASKS, 1, image.grid_size, image.grid_size).float()
    windows = torch.nn.functional.avg_pool2d(kept, 3, stride=1).eq(1).flatten(1).sum(1).float().mean().item()
    assert windows == pytest.approx(expected["mean_fully_kept_3x3_windows"], rel=0.05)
    by_cell = grid.mean(dim=0).numpy()
    assert np.abs(by_cell - np.array(expected["per_cell_masked_prob"])).max() < 0.06


def test_not_inverse_masks_remove_blocks() -> None:
    config = MaskConfig(prob=0.6, adjust=0.1, length=4, inverse=False)
    masks = block_masks_2d(50, 10, config, torch.Generator().manual_seed(0))
    assert masks.sum(dim=1).unique().tolist() == [60]


def test_views_part_every_row_into_kept_and_removed() -> None:
    masks = masks_of("image-tiny", 6, seed=3).view(2, 3, -1)
    views = split_views(masks, num_kept=14)
    for row, (kept, removed) in enumerate(zip(views.kept, views.removed, strict=True)):
        assert kept.tolist() == [token for token in range(49) if not masks.flatten(0, 1)[row, token]]
        assert sorted(kept.tolist() + removed.tolist()) == list(range(49))
        assert removed.tolist() == sorted(removed.tolist())
        together = torch.cat([kept, removed])
        assert torch.equal(together[views.restore[row]], torch.arange(49))
