"""Block, random and span masks of sequences against the reference: bit for bit at fixed seeds, and in distribution."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.masking import block_masks_1d, random_masks, span_masks
from model.sections import MaskConfig
from pretrain.recipes.registry import recipe
from tests.golden.tables import mask_stats, masks_seeded

BLOCKS = {
    "audio_base_block1d_r0.5_a0.05_b5_T249": "audio-base",
    "audio_base_block1d_r0.5_a0.05_b5_T780": "audio-base",
    "audio_large_block1d_r0.55_a0.1_b5_T249": "audio-large",
}
RANDOM = {"text_base_random_r0.48_T512": "text-base", "text_large_random_r0.5_T512": "text-large"}
SPANS = {"audio_base_span_r0.5_b5_T249_same8": False, "audio_base_span_r0.5_b5_T249_same8_addmasks": True}
NUM_MASKS = 2000


def mask_config(name: str) -> MaskConfig:
    (side,) = recipe(name).model.modalities.values()
    return side.mask


def hashed(parts: tuple[int, ...], modulus: float) -> int:
    """The reference's seeds: Python's hash of a tuple, modulo a float (facts, trap 9)."""
    return int(hash(parts) % modulus)


def cloned_ids(ids: list[int], num_views: int, seed: int) -> list[int]:
    """The reference's ids of views: the sample's own for the first, then shifted by hashes."""
    shifts = [0, *(hashed((seed, view), 1e10) for view in range(num_views - 1))]
    return [sample + shift for sample in ids for shift in shifts]


def span_rows(ids: list[int], lengths: list[int], num_tokens: int, config: MaskConfig, seed: int, epoch: int) -> Tensor:
    draws = [np.random.default_rng(hashed((seed, epoch, sample), 1e6)) for sample in ids]
    return span_masks(lengths, num_tokens, config, draws)


@pytest.mark.parametrize(("size", "num_masks"), [("base", 8), ("large", 12)])
def test_blocks_are_bit_equal_to_the_references(size: str, num_masks: int) -> None:
    expected = masks_seeded()[f"block1d_{size}_seed5_T249"].bool()
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(block_masks_1d(num_masks, 249, mask_config(f"audio-{size}"), generator), expected)


def test_random_tokens_are_bit_equal_to_the_references() -> None:
    expected = masks_seeded()["random_text_seed1_update10_ids0-7.mask"].bool()
    generator = torch.Generator().manual_seed(hashed((1, 10, sum(range(8))), 1e6))
    assert torch.equal(random_masks(8, 512, mask_config("text-base"), generator), expected)


@pytest.mark.parametrize("add_spans", [False, True])
def test_spans_are_bit_equal_to_the_references(add_spans: bool) -> None:
    """Rows 1 and 3 are padded from 200 and 120 on; rows that get more tokens removed may get padded ones."""
    expected = masks_seeded()[f"span_seed1_epoch7_ids3-6_pad_addmasks{int(add_spans)}"].bool()
    config = MaskConfig(kind="span", prob=0.5, length=5, add_spans=add_spans)
    assert torch.equal(span_rows([3, 4, 5, 6], [249, 200, 249, 120], 249, config, seed=1, epoch=7), expected)


def test_seeds_follow_the_references_rule() -> None:
    """What the tests above are seeded by, against the reference's own numbers."""
    table = mask_stats()["_seeding"]
    example = table["text_example"]
    assert cloned_ids(example["ids"], example["M"], example["seed"]) == example["cloned_ids"]
    for update in (0, 1000):
        seed = hashed((example["seed"], update, sum(example["cloned_ids"])), 1e6)
        assert seed == example[f"generator_seed_update{update}"]
    for key, seed in table["span_row_seed: int(hash((seed,epoch,index))%1e6)"].items():
        assert hashed(tuple(map(int, key.split(","))), 1e6) == seed


@pytest.mark.parametrize("key", BLOCKS)
def test_distribution_of_blocks(key: str) -> None:
    expected, config = mask_stats()[key], mask_config(BLOCKS[key])
    masks = block_masks_1d(NUM_MASKS, expected["T"], config, torch.Generator().manual_seed(0))
    assert masks.sum(dim=1).unique().tolist() == [expected["target_masked"]]
    assert config.num_removed(expected["T"]) == expected["target_masked"]
    same_distribution(masks, expected)


@pytest.mark.parametrize("key", RANDOM)
def test_distribution_of_random_tokens(key: str) -> None:
    expected, config = mask_stats()[key], mask_config(RANDOM[key])
    masks = random_masks(NUM_MASKS, expected["T"], config, torch.Generator().manual_seed(0))
    assert (~masks).sum(dim=1).unique().tolist() == [expected["len_keep"]]
    assert config.num_removed(expected["T"]) == expected["T"] - expected["len_keep"]
    same_distribution(masks, expected)


@pytest.mark.parametrize("key", SPANS)
def test_statistics_of_seeded_spans_are_the_references(key: str) -> None:
    """250 calls of 8 rows each, drawn by the table's rule: not similar, equal."""
    expected = mask_stats()[key]
    assert expected["seeding"] == "seed=1, epoch=call number u, indices=arange(8)+1000*u"
    config, num_tokens = MaskConfig(kind="span", prob=0.5, length=5, add_spans=SPANS[key]), expected["T"]
    calls = [
        span_rows([1000 * call + row for row in range(8)], [num_tokens] * 8, num_tokens, config, seed=1, epoch=call)
        for call in range(NUM_MASKS // 8)
    ]
    assert all(len(masks.sum(dim=1).unique()) == 1 for masks in calls)
    masks = torch.cat(calls)
    counts, numbers = masks.sum(dim=1).unique(return_counts=True)
    assert {str(count): n for count, n in zip(counts.tolist(), numbers.tolist(), strict=True)} == expected[
        "masked_count_hist"
    ]
    for removed, hist in ((1, "run_length_hist_masked"), (0, "run_length_hist_kept")):
        assert run_lengths(masks, removed) == {int(length): n for length, n in expected[hist].items()}
    by_place = masks.double().mean(dim=0).numpy()
    np.testing.assert_allclose(by_place, expected["per_position_masked_prob"], rtol=0, atol=1e-12)


def same_distribution(masks: Tensor, expected: dict[str, Any]) -> None:
    """Runs, autocorrelation and share by place within the sampling error of two sets of 2000 masks."""
    num_masks, num_tokens = masks.shape
    signal = masks.double()
    runs = sum(run_lengths(masks, 1).values()) / num_masks
    assert runs == pytest.approx(expected["n_masked_runs_mean"], rel=0.02)
    for removed, key in ((1, "run_length_hist_masked"), (0, "run_length_hist_kept")):
        ours, theirs = run_lengths(masks, removed), {int(length): n for length, n in expected[key].items()}
        for length in range(1, 16):
            share, other = (hist.get(length, 0) / sum(hist.values()) for hist in (ours, theirs))
            assert share == pytest.approx(other, abs=0.012), (key, length)
    centred = signal - signal.mean()
    for lag, value in expected["autocorr"].items():
        product = centred[:, : num_tokens - int(lag)] * centred[:, int(lag) :]
        assert (product.mean() / centred.square().mean()).item() == pytest.approx(value, abs=0.01), lag
    by_place = np.abs(signal.mean(dim=0).numpy() - np.array(expected["per_position_masked_prob"]))
    assert by_place.max() < 0.075  # 4.5 sigma of the difference of two means of 2000
    assert by_place.mean() < 0.02


def run_lengths(masks: Tensor, value: int) -> dict[int, int]:
    """How many runs of removed (1) or kept (0) tokens have which length."""
    padded = np.pad(masks.numpy().astype(np.int8) == value, ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(padded, axis=1)
    lengths = np.nonzero(steps == -1)[1] - np.nonzero(steps == 1)[1]
    return dict(zip(*(part.tolist() for part in np.unique(lengths, return_counts=True)), strict=True))


def test_spans_that_cover_a_row_are_refused() -> None:
    config = MaskConfig(kind="span", prob=0.99, length=2)
    with pytest.raises(ValueError, match=r"mask.prob 0.99: spans of 2 cover all 4 tokens"):
        span_rows(list(range(16)), [4] * 16, 4, config, seed=1, epoch=0)


def test_spans_stay_within_the_row() -> None:
    config = MaskConfig(kind="span", prob=0.5, length=5)
    masks = span_rows(list(range(16)), [40, 25] * 8, 40, config, seed=1, epoch=0)
    assert not masks[1::2, 25:].any()
    assert masks[0::2, 25:].any()
