"""Parameters and FLOPs as arithmetic, against built models and torch's own counter."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.accounting import num_parameters, tokens_of, train_flops_per_sample
from model.config import ModelConfig
from model.data2vec import Data2Vec
from model.losses import objective
from model.masking import split_views
from model.sections import AlibiConfig, LossConfig
from pretrain.recipes.registry import recipe
from tests.unit.model.inputs import LENGTHS, MODALITIES, initialized, inputs, tiny

PER_LAYER = AlibiConfig(per_layer=True, per_head=False)
FIXED = AlibiConfig(learned=False)
"""A bias that is trained keeps attention off the fused kernel, and torch counts it then."""


@pytest.mark.parametrize("alibi", [None, AlibiConfig(), PER_LAYER])
@pytest.mark.parametrize("prenet_depth", [0, 1])
@pytest.mark.parametrize("modality", MODALITIES)
def test_parameter_count_of_options(modality: str, prenet_depth: int, alibi: AlibiConfig | None) -> None:
    decoder = dataclasses.replace(recipe(f"{modality}-tiny").model.modalities[modality].decoder, dim=32)
    config = tiny(modality, alibi=alibi, prenet_depth=prenet_depth, num_extra_tokens=2, decoder=decoder)
    assert_counted(config)


def test_parameter_count_of_reconstruction() -> None:
    """The linear counts as a part of the decoder."""
    config = recipe("image-tiny").model
    encoder = dataclasses.replace(config.encoder, dim=16)
    image = dataclasses.replace(config.image, loss=LossConfig(reconstruction_weight=1.0))
    assert_counted(dataclasses.replace(config, encoder=encoder, image=image))


def test_parameter_count_of_all_modalities_in_one() -> None:
    sides = {name: recipe(f"{name}-tiny").model.modalities[name] for name in MODALITIES}
    config = ModelConfig(encoder=recipe("image-tiny").model.encoder, **sides)  # type: ignore[arg-type]
    assert_counted(config)


def assert_counted(config: ModelConfig) -> None:
    for role, with_decoders in (("student", True), ("encoder", False)):
        with torch.device("meta"):
            model = Data2Vec(config, role=role)  # type: ignore[arg-type]
        counted = num_parameters(config, with_decoders=with_decoders)
        assert counted == sum(value.numel() for value in model.state_dict().values())


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_tokens_are_those_of_the_frontend(modality: str) -> None:
    config = tiny(modality)
    model = initialized(config)
    shortest = config.audio.receptive_field if config.audio else 1
    more = (0, 319, 320, 321, 5_003) if modality == "audio" else (0, 16)
    for length in (shortest + one for one in more):
        source = torch.randn(1, length) if modality == "audio" else torch.full((1, length), 7)
        assert model.features(source, modality=modality).shape[1] == tokens_of(config.modalities[modality], length)


def test_frames_of_the_released_feature_encoder() -> None:
    """Every 20 ms, from 25 ms on (facts section 1.1)."""
    audio = recipe("audio-base").model.audio
    assert [audio.num_frames(length) for length in (0, 399, 400, 719, 720, 80_000)] == [0, 0, 1, 1, 2, 249]
    assert audio.receptive_field == 400


def measured_flops(config: ModelConfig, modality: str) -> int:
    """What torch counts in one training sample: teacher forward, student forward and backward."""
    student, teacher = initialized(config), Data2Vec(config, role="teacher")
    teacher.load_state_dict({name: student.state_dict()[name] for name in teacher.state_dict()})
    given = inputs(config, modality, num_samples=1)
    source = given.source
    if source.is_floating_point():
        source.requires_grad_()  # a backward pass counts as two forward passes, that of the first layer too
    with FlopCounterMode(display=False) as counter:
        out = given.student(student, modality)
        goal = teacher.targets(source.detach(), out, modality=modality)
        terms = objective(config.modalities[modality], out, goal.targets, source)
        sum(term.sum for term in terms.values()).backward()  # type: ignore[union-attr]
    return counter.get_total_flops()


def ungrouped(modality: str, **side: Any) -> ModelConfig:
    decoder = dataclasses.replace(recipe(f"{modality}-tiny").model.modalities[modality].decoder, groups=1)
    return tiny(modality, decoder=decoder, **side)


@pytest.mark.parametrize(
    ("modality", "config"),
    [
        ("image", ungrouped("image")),
        ("audio", ungrouped("audio", positions_groups=1, alibi=FIXED)),
        (
            "audio",
            ungrouped(
                "audio",
                positions_groups=1,
                alibi=FIXED,
                prenet_depth=1,
                num_extra_tokens=1,
                teacher_scope="frontend",
            ),
        ),
        ("text", ungrouped("text")),
        ("text", ungrouped("text", teacher_scope="context", prenet_depth=1)),
    ],
)
def test_flops_equal_what_torch_counts(modality: str, config: ModelConfig) -> None:
    """torch's counter knows no attention on the CPU, and takes grouped convolutions for dense ones in backward:
    so attention is added here, and convolutions have one group."""
    side, encoder = config.modalities[modality], config.encoder
    num_tokens = tokens_of(side, LENGTHS[modality])
    num_kept = num_tokens - side.mask.num_removed(num_tokens)
    squares = (side.num_extra_tokens + num_tokens) ** 2
    squares += 3 * side.num_views * (side.num_extra_tokens + num_kept) ** 2
    attention = 4 * squares * encoder.dim * (side.prenet_depth + encoder.depth)
    counted = train_flops_per_sample(config, modality, LENGTHS[modality])
    assert measured_flops(config, modality) + attention == pytest.approx(counted, rel=1e-5)


def test_flops_of_a_text_prenet_count_the_teachers_context() -> None:
    """A teacher of the shared blocks alone reads a pass of the student's prenet over the whole sample."""
    config = ungrouped("text", prenet_depth=1)
    encoder, num_tokens = config.encoder, LENGTHS["text"]
    num_kept = num_tokens - config.text.mask.num_removed(num_tokens)
    squares = num_tokens**2 + 3 * config.text.num_views * num_kept**2
    attention = 4 * squares * encoder.dim * (1 + encoder.depth)
    counted = train_flops_per_sample(config, "text", num_tokens)
    assert measured_flops(config, "text") + attention == pytest.approx(counted, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("image-tiny", 28),
        ("audio-tiny", 24_000),
        ("text-tiny", 64),
        ("image-base", 224),
        ("audio-base", 320_000),
        ("text-base", 512),
        ("image-huge14", 224),
        ("image-7b", 224),
    ],
)
def test_recipes_take_what_torch_counts(name: str, length: int) -> None:
    """Forward and backward pass of whole recipes without storage, where torch counts attention, too. Convolutions have
    one group, and the length is the longest that the recipe reads.
    """
    config = recipe(name).model
    ((modality, side),) = config.modalities.items()
    changes: dict[str, Any] = {"decoder": dataclasses.replace(side.decoder, groups=1)}
    if modality == "audio":
        changes |= {"positions_groups": 1, "alibi": FIXED}
    config = dataclasses.replace(config, **{modality: dataclasses.replace(side, **changes)})
    num_tokens = tokens_of(side, length)
    num_removed = side.mask.num_removed(num_tokens)
    with torch.device("meta"):
        student, teacher = (Data2Vec(config, role=role).to("meta") for role in ("student", "teacher"))
        teacher.eval()
        views = split_views(torch.empty(1, side.num_views, num_tokens, dtype=torch.bool), num_tokens - num_removed)
        noise = torch.empty(side.num_views, num_removed, config.encoder.dim)
        if config.image is not None:
            source = torch.empty(1, config.image.in_channels, length, length, requires_grad=True)
        else:
            source = torch.empty(1, length, dtype=torch.long if modality == "text" else None)
            source.requires_grad_(modality == "audio")
    with FlopCounterMode(display=False) as counter:
        out = student(source, views, noise, modality=modality)
        goal = teacher.targets(source.detach(), out, modality=modality)
        terms = objective(config.modalities[modality], out, goal.targets, source)
        sum(term.sum for term in terms.values()).backward()  # type: ignore[union-attr]
    assert counter.get_total_flops() == pytest.approx(train_flops_per_sample(config, modality, length), rel=1e-6)
