"""Properties of the student's and the teacher's pass that goldens do not show."""

import dataclasses

import pytest
import torch

from model.attention import _attend_by_matmul
from model.config import ModelConfig
from model.data2vec import Data2Vec, patchify
from model.errors import ConfigError
from model.losses import LossTerm, objective
from model.positions import alibi_slopes, distances_2d
from model.sections import LossConfig, TargetConfig
from model.targets import TargetAccumulator
from pretrain.recipes.registry import recipe
from tests.unit.model.inputs import MODALITIES, Inputs, initialized, inputs, tiny

CLS = LossConfig(cls_weight=0.01, cls_rows=32)
CASES = {
    "image": tiny("image", loss=CLS),
    "audio": tiny("audio", loss=CLS, num_extra_tokens=1, prenet_depth=1),
    "text": tiny("text"),
}


@pytest.fixture(scope="module")
def students() -> dict[str, Data2Vec]:
    return {modality: initialized(config) for modality, config in CASES.items()}


def terms(model: Data2Vec, given: Inputs, modality: str) -> dict[str, LossTerm]:
    """The objective with the student's own weights as the teacher's."""
    out = given.student(model, modality)
    targets = model.targets(given.source, out, modality=modality, padding=given.padding).targets
    return objective(model.config.modalities[modality], out, targets, given.source)


@pytest.mark.parametrize("modality", MODALITIES)
def test_terms_do_not_depend_on_how_a_batch_is_cut(students: dict[str, Data2Vec], modality: str) -> None:
    """Sums over microbatches are the sums over the batch, CLS term included (the reference's is not: trap 2)."""
    student = students[modality]
    given = inputs(student.config, modality, padded=modality != "image")
    whole = terms(student, given, modality)
    halves = [terms(student, given.part(part), modality) for part in (slice(0, 1), slice(1, 4))]
    for name, term in whole.items():
        torch.testing.assert_close(sum(half[name].sum for half in halves), term.sum, rtol=1e-5, atol=0)
        assert sum(half[name].count for half in halves) == term.count
        assert {half[name].weight for half in halves} == {term.weight}


@pytest.mark.parametrize("modality", MODALITIES)
def test_order_of_views_changes_nothing(students: dict[str, Data2Vec], modality: str) -> None:
    student = students[modality]
    given = inputs(student.config, modality)
    other = dataclasses.replace(given, masks=given.masks.flip(1), noise=given.noise.flip(1))
    before, after = terms(student, given, modality), terms(student, other, modality)
    for name in before:
        torch.testing.assert_close(after[name].sum, before[name].sum, rtol=1e-5, atol=0)


@pytest.mark.parametrize("modality", MODALITIES)
def test_bf16_keeps_losses_and_targets_in_fp32(students: dict[str, Data2Vec], modality: str) -> None:
    student = students[modality]
    given = inputs(student.config, modality, padded=modality != "image")
    expected = terms(student, given, modality)
    low = Data2Vec(student.config)
    low.load_state_dict(student.state_dict())
    low = low.to(torch.bfloat16)
    source = given.source.bfloat16() if given.source.is_floating_point() else given.source
    rounded = dataclasses.replace(given, source=source, noise=given.noise.bfloat16())
    out = rounded.student(low, modality)
    assert out.prediction.dtype == torch.bfloat16
    assert low.targets(source, out, modality=modality, padding=given.padding).targets.dtype == torch.float32
    seen = terms(low, rounded, modality)
    for name, term in expected.items():
        assert seen[name].sum.dtype == torch.float32
        torch.testing.assert_close(seen[name].sum, term.sum, rtol=0.02, atol=0)


@pytest.mark.parametrize("with_bias", [False, True])
def test_both_attention_paths_agree(with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 9, 8, generator=generator) for _ in range(3))
    distances = distances_2d(torch.arange(9).unsqueeze(0), 3, "euclidean").unsqueeze(1)
    bias = -alibi_slopes(4).view(1, -1, 1, 1) * distances if with_bias else None
    fused = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(_attend_by_matmul(query, key, value, bias, 0.0), fused, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_padding_of_others_changes_no_whole_sample(students: dict[str, Data2Vec], modality: str) -> None:
    """Beside a padded sample a whole one encodes as it does alone, although the batch then carries a padding mask."""
    student = students[modality]
    given = inputs(student.config, modality, padded=True)
    alone = dataclasses.replace(given.part(slice(0, 1)), padding=None)
    together = given.student(student, modality)
    expected = alone.student(student, modality)
    num_views = given.masks.shape[1]
    torch.testing.assert_close(together.encoded[:num_views], expected.encoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.prediction[:num_views], expected.prediction, rtol=0, atol=1e-5)


def test_padded_text_encodes_its_tokens_as_without_padding(students: dict[str, Data2Vec]) -> None:
    """Nothing but attention crosses tokens, and it does not see padding."""
    student = students["text"]
    given = inputs(student.config, "text", padded=True).part(slice(1, 2))
    assert given.padding is not None
    length = int((~given.padding).sum())
    padded = student.features(given.source, modality="text", padding=given.padding)
    alone = student.features(given.source[:, :length], modality="text")
    torch.testing.assert_close(padded[:, :length], alone, rtol=0, atol=1e-5)
    unmasked = student.features(given.source, modality="text")  # without the mask it does see it
    assert (unmasked[:, :length] - alone).abs().max() > 1e-2


def test_a_view_of_padding_alone_stays_finite(students: dict[str, Data2Vec]) -> None:
    """The reference's softmax over nothing but minus infinity gives nan; here loss and gradients stay finite."""
    student = students["text"]
    given = inputs(student.config, "text", num_samples=2)
    padding = torch.zeros(2, given.masks.shape[2], dtype=torch.bool)
    padding[1] = ~given.masks[1, 0]  # the first view of the second sample keeps padding only
    out = dataclasses.replace(given, padding=padding).student(student, "text")
    assert out.encoded.isfinite().all()
    out.prediction.sum().backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
    student.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("modality", "scope", "has_frontend", "has_local"),
    [
        ("image", "frontend", True, True),
        ("audio", "context", True, False),
        ("text", "encoder", False, False),
    ],
)
def test_teacher_has_what_its_scope_says(modality: str, scope: str, has_frontend: bool, has_local: bool) -> None:
    config = tiny(modality)
    assert config.modalities[modality].teacher_scope == scope
    student, teacher = Data2Vec(config), Data2Vec(config, role="teacher")
    encoder = Data2Vec(config, role="encoder")
    student_names, names = student.state_dict().keys(), teacher.state_dict().keys()
    assert names < student_names
    assert any(name.startswith(f"frontends.{modality}.") for name in names) == has_frontend
    assert any(name.startswith(f"frontends.{modality}.local.") for name in names) == has_local
    assert not any(name.startswith("decoders.") for name in names)
    assert encoder.state_dict().keys() == {name for name in student_names if not name.startswith("decoders.")}


def test_target_is_the_normalised_mean() -> None:
    """Instance norm per block, mean, layer norm; written out with means and variances."""
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(2, 5, 6, generator=generator) * (i + 1) + i for i in range(4)]
    accumulator = TargetAccumulator(TargetConfig(top_k=4, layer_norm=True))
    for block in blocks:
        accumulator.add(block)
    total = torch.zeros(2, 5, 6)
    for block in blocks:
        total += (block - block.mean(1, keepdim=True)) / (block.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    mean = total / 4
    expected = (mean - mean.mean(-1, keepdim=True)) / (mean.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(accumulator.finish(), expected, rtol=1e-5, atol=1e-6)


def test_sum_of_targets_can_travel() -> None:
    """Blocks added in two places, the sum carried between them, give the same target."""
    config = TargetConfig(top_k=4, layer_norm=True)
    blocks = [torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    whole, first = TargetAccumulator(config), TargetAccumulator(config)
    for block in blocks:
        whole.add(block)
    for block in blocks[:2]:
        first.add(block)
    second = TargetAccumulator(config, first.total)
    for block in blocks[2:]:
        second.add(block)
    assert torch.equal(second.finish(), whole.finish())


def test_patches_hold_their_pixels_channel_last() -> None:
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    patches = patchify(images, 2)
    assert patches.shape == (2, 4, 12)
    assert patches[0, 1].tolist() == [images[0, c, y, x].item() for y in (0, 1) for x in (2, 3) for c in range(3)]


@pytest.mark.parametrize("modality", MODALITIES)
def test_impossible_targets_are_refused_by_field(modality: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{modality}\.target\.top_k: 5"):
        tiny(modality, target=TargetConfig(top_k=5))


def test_impossible_models_are_refused_by_field() -> None:
    config = recipe("image-tiny").model
    with pytest.raises(ConfigError, match=r"model\.image\.loss\.reconstruction_weight"):
        tiny("image", loss=LossConfig(reconstruction_weight=1.0))
    with pytest.raises(ConfigError, match=r"model\.audio\.loss\.reconstruction_weight: only images"):
        tiny("audio", loss=LossConfig(reconstruction_weight=1.0))
    with pytest.raises(ConfigError, match=r"model\.encoder\.dim"):
        dataclasses.replace(config.encoder, num_heads=5)
    with pytest.raises(ConfigError, match=r"model\.image\.image_size"):
        tiny("image", patch_size=5)
    with pytest.raises(ConfigError, match=r"model: needs at least one of image, audio and text"):
        ModelConfig()
