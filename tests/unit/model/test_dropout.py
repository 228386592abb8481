"""Dropout and left-out blocks: where they act (facts section 1.6), and that off means off.

Most tests put a dropout in place of torch's that is no chance: every channel is multiplied by a number that depends on
the channel and the rate, so that a dropout in a wrong place, or with another's rate, shows.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model import attention
from model.attention import attend
from model.config import ModelConfig
from model.data2vec import Data2Vec
from model.sections import AlibiConfig, EncoderConfig
from tests.unit.model.inputs import Inputs, initialized, inputs, shaken, tiny
from tests.unit.model.plain import Plain

RATES = {
    "dropout": 0.11,
    "attention_dropout": 0.13,
    "activation_dropout": 0.17,
    "post_mlp_dropout": 0.19,
    "input_dropout": 0.23,
}
MODALITIES = ("image", "audio", "text")


def known(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In place of ``functional.dropout``; signature as there."""
    if not training or p == 0:
        return x
    return x * (1 + p * torch.cos(1.7 * torch.arange(x.shape[-1], device=x.device) + 10 * p)).to(x.dtype)


@pytest.fixture
def known_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "dropout", known)
    by_matmul = lambda *given, dropout=0.0: attention._attend_by_matmul(*given, dropout)  # noqa: E731
    monkeypatch.setattr(attention, "attend", by_matmul)


def with_rates(modality: str, *, encoder: dict[str, float] | None = None, **side: Any) -> ModelConfig:
    config = tiny(modality, **side)
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **(encoder or {})))


def everything_drops(modality: str) -> ModelConfig:
    side: dict[str, Any] = {"prenet_depth": 1, "prenet_dropout": 0.29}
    side["decoder"] = dataclasses.replace(tiny(modality).modalities[modality].decoder, input_dropout=0.31)
    if modality == "text":
        side["dropout"] = 0.37
    return with_rates(modality, encoder=RATES, **side)


@pytest.mark.usefixtures("known_dropout")
@pytest.mark.parametrize("rate", [*RATES, "all"])
def test_block_drops_where_the_method_says(rate: str) -> None:
    rates = RATES if rate == "all" else {name: value * (name == rate) for name, value in RATES.items()}
    config = with_rates("text", encoder=rates)
    model = shaken(config).train()
    x = torch.randn(5, config.encoder.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = []
    encoded = model.encoder(x.unsqueeze(0), lambda number: None, observe=lambda *both: seen.append(both))
    plain = Plain(
        {name: value.detach() for name, value in model.state_dict().items()}, config.encoder.num_heads, eps=1e-6
    )
    expected = known(x, rates["input_dropout"])
    for number, (output, inner) in enumerate(seen):
        expected, target = block_with_dropout(plain, f"encoder.blocks.{number}", expected, rates)
        torch.testing.assert_close(inner[0], target, rtol=0, atol=5e-6)  # its softmax is in fp32
        torch.testing.assert_close(output[0], expected, rtol=0, atol=5e-6)
    assert torch.equal(encoded, seen[-1][0])


def block_with_dropout(plain: Plain, name: str, x: Tensor, rates: dict[str, float]) -> tuple[Tensor, Tensor]:
    width = x.shape[1] // plain.num_heads
    packed = plain.linear(f"{name}.attention.qkv", x).unflatten(1, (plain.num_heads, 3, width))
    heads = []
    for query, key, value in packed.permute(1, 2, 0, 3):
        weights = (query @ key.T / math.sqrt(width)).softmax(-1)
        heads.append(known(weights, rates["attention_dropout"]) @ value)
    attended = known(plain.linear(f"{name}.attention.output", torch.cat(heads, dim=-1)), rates["dropout"])
    x = plain.norm(f"{name}.norm1", x + attended)
    hidden = known(functional.gelu(plain.linear(f"{name}.mlp.up", x)), rates["activation_dropout"])
    inner = known(plain.linear(f"{name}.mlp.down", hidden), rates["activation_dropout"])
    return plain.norm(f"{name}.norm2", x + known(inner, rates["post_mlp_dropout"])), inner


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_drops_its_weights(dtype: torch.dtype) -> None:
    """With the identity for values the weights themselves come out: dropped, or enlarged by 1 / (1 - rate)."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(8, 2, 16, 16, generator=generator, dtype=dtype) for _ in range(2))
    value = torch.eye(16, dtype=dtype).expand(8, 2, 16, 16)
    whole = attend(query, key, value, None).float()
    torch.manual_seed(0)
    dropped = attend(query, key, value, None, dropout=0.25).float()
    gone = dropped == 0
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.03)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(dropped[~gone], (whole / 0.75)[~gone], rtol=tolerance, atol=1e-4)


@pytest.mark.usefixtures("known_dropout")
def test_embedded_text_is_dropped_once_for_teacher_and_views() -> None:
    config = with_rates("text", dropout=0.37)
    student, still = shaken(config).train(), shaken(config).eval()
    given = inputs(config, "text").double()
    tokens = still.frontends["text"].tokens(given.source)
    out = given.student(student, "text")
    torch.testing.assert_close(out.tokens, known(tokens, 0.37), rtol=0, atol=1e-12)
    torch.testing.assert_close(out.context.x, known(tokens, 0.37), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("known_dropout")
@pytest.mark.parametrize("modality", MODALITIES)
def test_context_is_dropped_between_norm_and_prenet(modality: str) -> None:
    """Extra tokens as the others; not in evaluation."""
    config = with_rates(modality, prenet_dropout=0.29, prenet_depth=1)
    model = shaken(config).train()
    frontend, seen, normed = model.frontends[modality], [], []
    frontend.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    frontend.norm.register_forward_hook(lambda module, given, output: normed.append(output))
    given = inputs(config, modality).double()
    given.student(model, modality)
    torch.testing.assert_close(seen[0], known(normed[0], 0.29), rtol=0, atol=1e-12)
    model.eval().features(given.source, modality=modality)
    assert torch.equal(seen[-1], normed[-1])


@pytest.mark.usefixtures("known_dropout")
@pytest.mark.parametrize("modality", MODALITIES)
def test_decoder_drops_what_was_encoded_but_not_the_noise(modality: str) -> None:
    decoder = dataclasses.replace(tiny(modality).modalities[modality].decoder, input_dropout=0.31)
    config = with_rates(modality, decoder=decoder)
    model, seen = shaken(config).train(), []
    model.decoders[modality].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    given = inputs(config, modality).double()
    out = given.student(model, modality)
    kept = out.encoded[:, config.modalities[modality].num_extra_tokens :]
    torch.testing.assert_close(seen[0][~given.views.mask], known(kept.flatten(0, 1), 0.31), rtol=0, atol=1e-12)
    torch.testing.assert_close(seen[0][given.views.mask], given.noise.flatten(0, 2), rtol=0, atol=0)


@pytest.mark.parametrize("modality", MODALITIES)
def test_nothing_drops_in_evaluation(modality: str) -> None:
    """Student and teacher in evaluation are those of a model without dropout, bit for bit; in training they are not."""
    config, still = everything_drops(modality), with_rates(modality, prenet_depth=1)
    model, without = initialized(config), initialized(still)
    given = inputs(config, modality)
    expected = outputs(without.train(), given, modality)
    assert all(map(torch.equal, outputs(model.eval(), given, modality), expected))
    assert not torch.allclose(outputs(model.train(), given, modality)[0], expected[0])


def outputs(model: Data2Vec, given: Inputs, modality: str) -> tuple[Tensor, Tensor, Tensor]:
    out = given.student(model, modality)
    return out.prediction, out.encoded, model.targets(given.source, out, modality=modality).targets


@pytest.mark.parametrize("modality", MODALITIES)
def test_left_out_blocks_change_nothing_and_get_gradients_of_zero(modality: str) -> None:
    """Numbers count from the prenet on. A model without these blocks gives the same numbers, and every parameter has
    a gradient all the same."""
    per_layer = AlibiConfig(per_layer=True) if modality == "audio" else None
    config = with_rates(modality, prenet_depth=2, alibi=per_layer)
    model, given = initialized(config), inputs(config, modality, padded=modality != "image")
    out = given.student(model, modality, skipped=frozenset({0, 3, 4}))
    shorter = initialized(config)
    shorter.load_state_dict(model.state_dict())
    for blocks, numbers in ((shorter.frontends[modality].blocks, (0,)), (shorter.encoder.blocks, (1, 2))):
        for number in numbers:
            blocks[number] = torch.nn.Identity()
            blocks[number].forward = lambda x, bias: (x, x)
    expected = given.student(shorter, modality)
    assert torch.equal(out.encoded, expected.encoded)
    assert torch.equal(out.prediction, expected.prediction)
    out.prediction.square().sum().backward()
    left_out = (f"frontends.{modality}.blocks.0.", "encoder.blocks.1.", "encoder.blocks.2.")
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.abs().max() == 0) == name.startswith(left_out), name
    if per_layer is not None:
        moved = model.frontends["audio"].alibi_scale.grad.flatten(1).abs().amax(dim=1) > 0
        assert moved.tolist() == [False, True, True, False, False, True]


def test_rates_are_probabilities_below_one() -> None:
    for name in (*RATES, "layer_dropout"):
        with pytest.raises(ValueError, match=rf"model\.encoder\.{name}: must be at least 0 and below 1, got 1"):
            EncoderConfig(**{name: 1.0})
