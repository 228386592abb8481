"""Properties of the student's and the teacher's pass that goldens do not show."""

import dataclasses

import pytest
import torch
from torch import Tensor

from model.attention import _attend_by_matmul
from model.config import ConfigError, ModelConfig
from model.data2vec import Data2Vec, patchify
from model.initialization import initialize
from model.losses import LossTerm, objective
from model.masking import Views, block_masks_2d, split_views
from model.positions import alibi_2d
from model.targets import TargetAccumulator
from pretrain.recipes.registry import recipe
from tests.golden.tables import masks_seeded


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    tiny = recipe("image-tiny").model
    return dataclasses.replace(tiny, loss=dataclasses.replace(tiny.loss, cls_weight=0.01, cls_rows=32))


@pytest.fixture(scope="module")
def student(config: ModelConfig) -> Data2Vec:
    model = Data2Vec(config)
    initialize(model, 0)
    return model


def batch(config: ModelConfig, num_samples: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Images, masks (B, M, T) and noise (B, M, R, D)."""
    image, generator = config.image, torch.Generator().manual_seed(0)
    source = torch.randn(num_samples, image.in_channels, image.image_size, image.image_size, generator=generator)
    masks = block_masks_2d(num_samples * config.num_views, image.grid_size, image.mask, generator)
    masks = masks.view(num_samples, config.num_views, -1)
    num_removed = image.num_tokens - image.num_kept
    noise = 0.01 * torch.randn(num_samples, config.num_views, num_removed, config.encoder.dim, generator=generator)
    return source, masks, noise


def terms(model: Data2Vec, source: Tensor, masks: Tensor, noise: Tensor) -> dict[str, LossTerm]:
    config = model.config
    views: Views = split_views(masks, config.image.num_kept)
    with torch.no_grad():
        targets = model.targets(source).targets
    return objective(config, model(source, views, noise.flatten(0, 1)), targets, views, source)


def test_terms_do_not_depend_on_how_a_batch_is_cut(student: Data2Vec, config: ModelConfig) -> None:
    """Sums over microbatches are the sums over the batch, CLS term included (the reference's is not: trap 2)."""
    source, masks, noise = batch(config)
    whole = terms(student, source, masks, noise)
    halves = [terms(student, source[part], masks[part], noise[part]) for part in (slice(0, 1), slice(1, 4))]
    for name, term in whole.items():
        torch.testing.assert_close(sum(half[name].sum for half in halves), term.sum, rtol=1e-5, atol=0)
        assert sum(half[name].count for half in halves) == term.count
        assert {half[name].weight for half in halves} == {term.weight}


def test_order_of_views_changes_nothing(student: Data2Vec, config: ModelConfig) -> None:
    source, masks, noise = batch(config)
    before = terms(student, source, masks, noise)
    after = terms(student, source, masks.flip(1), noise.flip(1))
    for name in before:
        torch.testing.assert_close(after[name].sum, before[name].sum, rtol=1e-5, atol=0)


def test_bf16_keeps_losses_and_targets_in_fp32(student: Data2Vec, config: ModelConfig) -> None:
    source, masks, noise = batch(config)
    expected = terms(student, source, masks, noise)
    low = Data2Vec(config)
    low.load_state_dict(student.state_dict())
    low = low.to(torch.bfloat16)
    seen = terms(low, source.bfloat16(), masks, noise.bfloat16())
    assert low.targets(source.bfloat16()).targets.dtype == torch.float32
    for name, term in expected.items():
        assert seen[name].sum.dtype == torch.float32
        torch.testing.assert_close(seen[name].sum, term.sum, rtol=0.02, atol=0)


@pytest.mark.parametrize("with_bias", [False, True])
def test_both_attention_paths_agree(with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 9, 8, generator=generator) for _ in range(3))
    bias = alibi_2d(4, 3, "euclidean").unsqueeze(0) if with_bias else None
    fused = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(_attend_by_matmul(query, key, value, bias), fused, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", ["manhattan", "euclidean"])
def test_alibi_equals_the_references_table(distance: str) -> None:
    expected = masks_seeded()[f"alibi2d_{'euclid' if distance == 'euclidean' else distance}_h4_4x4"]
    torch.testing.assert_close(alibi_2d(4, 4, distance), expected, rtol=1e-6, atol=0)  # type: ignore[arg-type]


def test_target_is_the_normalised_mean(config: ModelConfig) -> None:
    """Instance norm per block, mean, layer norm; written out with means and variances."""
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(2, 5, 6, generator=generator) * (i + 1) + i for i in range(4)]
    accumulator = TargetAccumulator(config.target)
    for block in blocks:
        accumulator.add(block)
    total = torch.zeros(2, 5, 6)
    for block in blocks:
        total += (block - block.mean(1, keepdim=True)) / (block.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    mean = total / 4
    expected = (mean - mean.mean(-1, keepdim=True)) / (mean.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(accumulator.finish(), expected, rtol=1e-5, atol=1e-6)


def test_sum_of_targets_can_travel(config: ModelConfig) -> None:
    """Blocks added in two places, the sum carried between them, give the same target."""
    blocks = [torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    whole, first = TargetAccumulator(config.target), TargetAccumulator(config.target)
    for block in blocks:
        whole.add(block)
    for block in blocks[:2]:
        first.add(block)
    second = TargetAccumulator(config.target, first.total)
    for block in blocks[2:]:
        second.add(block)
    assert torch.equal(second.finish(), whole.finish())


def test_patches_hold_their_pixels_channel_last() -> None:
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    patches = patchify(images, 2)
    assert patches.shape == (2, 4, 12)
    assert patches[0, 1].tolist() == [images[0, c, y, x].item() for y in (0, 1) for x in (2, 3) for c in range(3)]


def test_impossible_models_are_refused_by_field() -> None:
    tiny = recipe("image-tiny").model
    with pytest.raises(ConfigError, match=r"model\.target\.top_k: 5"):
        dataclasses.replace(tiny, target=dataclasses.replace(tiny.target, top_k=5))
    with pytest.raises(ConfigError, match=r"model\.loss\.reconstruction_weight"):
        dataclasses.replace(tiny, loss=dataclasses.replace(tiny.loss, reconstruction_weight=1.0))
    with pytest.raises(ConfigError, match=r"model\.encoder\.dim"):
        dataclasses.replace(tiny.encoder, num_heads=5)
    with pytest.raises(ConfigError, match=r"model\.image\.image_size"):
        dataclasses.replace(tiny.image, patch_size=5)
