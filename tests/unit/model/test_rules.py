"""Rules that the goldens cannot show, because their configurations do not meet them."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import ModelConfig
from model.data2vec import Data2Vec
from model.decoder import Decoder
from model.losses import objective
from model.masking import split_views
from model.rows import ALL_ROWS
from model.sections import AlibiConfig, DecoderConfig
from pretrain.recipes.registry import recipe
from tests.unit.model.inputs import MODALITIES, initialized, inputs, tiny


@pytest.mark.parametrize("modality", MODALITIES)
def test_only_the_last_blocks_are_averaged(modality: str) -> None:
    """The committed configurations average every block; here only the last of several counts."""
    target = dataclasses.replace(recipe(f"{modality}-tiny").model.modalities[modality].target, top_k=1)
    config = tiny(modality, target=target)
    assert config.encoder.depth > 1
    model, last = initialized(config), []
    given = inputs(config, modality)
    out = given.student(model, modality)
    model.encoder.blocks[-1].mlp.register_forward_hook(lambda module, inputs, output: last.append(output))
    targets = model.targets(given.source, out, modality=modality).targets
    inner = last[0][:, config.modalities[modality].num_extra_tokens :].transpose(1, 2)
    expected = torch.nn.functional.instance_norm(inner).transpose(1, 2)
    if target.layer_norm:
        expected = torch.nn.functional.layer_norm(expected, expected.shape[-1:])
    torch.testing.assert_close(targets, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_negative_alibi_scale_acts_as_zero(modality: str) -> None:
    """fairseq clamps the scale from below (``clamp_min(0)``)."""
    off = initialized(tiny(modality, alibi=None))
    source = inputs(off.config, modality).source
    weights, encoded = off.state_dict(), off.features(source, modality=modality)
    for scale, is_off in ((-0.5, True), (0.5, False)):
        model = initialized(tiny(modality, alibi=AlibiConfig(scale=scale)))
        name = f"frontends.{modality}.alibi_scale"
        model.load_state_dict(weights | {name: model.state_dict()[name]})
        seen = model.features(source, modality=modality)
        assert torch.allclose(seen, encoded, rtol=0, atol=1e-5 if is_off else 1e-3) == is_off


def test_clamped_alibi_scale_gets_gradient_where_it_counts() -> None:
    """Scales below zero act as zero and stay; the others are trained."""
    model = initialized(tiny("audio"))
    scale = model.frontends["audio"].alibi_scale
    with torch.no_grad():
        scale.copy_(torch.tensor([-1.0, 1.0, 0.5, -0.1]).view(scale.shape))
    given = inputs(model.config, "audio")
    given.student(model, "audio").prediction.square().sum().backward()
    assert (scale.grad.flatten() != 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("grid_size", [None, 3])
def test_decoder_without_residual_is_the_bare_chain_of_layers(grid_size: int | None) -> None:
    decoder = Decoder(
        DecoderConfig(dim=8, groups=2, num_layers=3, residual=False), dim=8, grid_size=grid_size, rows=ALL_ROWS
    )
    x = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
    expected = x.transpose(1, 2)
    if grid_size is not None:
        expected = expected.unflatten(2, (grid_size, grid_size))
    for layer in decoder.layers:
        expected = layer(expected)
    expected = decoder.projection(expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(decoder(x), expected, rtol=0, atol=0)


def test_positions_go_to_all_tokens_or_to_removed_ones() -> None:
    for where in ("all", "masked"):
        decoder = dataclasses.replace(recipe("image-tiny").model.image.decoder, add_positions=where)
        config = tiny("image", decoder=decoder)
        model, seen = initialized(config), []
        model.decoders["image"].register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0]))
        mask = torch.ones(2, 1, config.image.num_tokens, dtype=torch.bool)
        mask[:, :, : config.image.num_kept] = False
        views = split_views(mask, config.image.num_kept)
        noise = torch.zeros(*views.removed.shape, config.encoder.dim)
        out = model(inputs(config, "image", num_samples=2).source, views, noise, modality="image")
        positions = model.state_dict()["frontends.image.positions"]
        kept = out.encoded[:, config.image.num_extra_tokens :]
        shift = positions[:, : config.image.num_kept] if where == "all" else 0
        torch.testing.assert_close(seen[0][:, : config.image.num_kept], kept + shift, rtol=0, atol=1e-6)
        removed = seen[0][:, config.image.num_kept :]
        torch.testing.assert_close(removed, positions[:, config.image.num_kept :].expand_as(removed), rtol=0, atol=0)


def test_only_the_first_extra_token_may_start_at_zero() -> None:
    tokens = initialized(tiny("image", num_extra_tokens=3, extra_tokens_zero_init=True)).frontends["image"].extra_tokens
    assert tokens[:, 0].abs().max() == 0
    assert 0.7 < tokens[:, 1:].std() < 1.3


def test_text_has_an_input_norm_before_a_prenet_only() -> None:
    for depth, has_norm in ((0, False), (1, True)):
        names = Data2Vec(tiny("text", prenet_depth=depth)).state_dict().keys()
        assert ("frontends.text.norm.weight" in names) == has_norm
    assert "frontends.audio.norm.weight" in Data2Vec(tiny("audio", prenet_depth=0)).state_dict()


def test_convolutional_positions_do_not_see_removed_tokens() -> None:
    """What a removed token holds changes no kept token (of padding it does: it is not zeroed)."""
    model = initialized(tiny("audio", alibi=None)).double()
    given = inputs(model.config, "audio", num_samples=1)
    frontend, views = model.frontends["audio"], given.views
    tokens = frontend.tokens(given.source.double())
    other = tokens + 100 * given.masks[:, 0].unsqueeze(-1)
    first = slice(0, 1)  # of the views
    before = frontend.contextualize(tokens, views, None).x[first]
    torch.testing.assert_close(frontend.contextualize(other, views, None).x[first], before, rtol=0, atol=1e-12)
    with_padding = tokens.clone()
    with_padding[:, -1] += 100
    padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    padding[:, -1] = True
    unmasked = frontend.contextualize(tokens, None, padding).x[:, :-1]
    assert (frontend.contextualize(with_padding, None, padding).x[:, :-1] - unmasked).abs().max() > 1e-3


class _Crossings(TorchDispatchMode):
    """Collects operations whose tensors lie on more than one device, and reads of values by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {value.device.type for value in (*args, out) if isinstance(value, Tensor)}
        if len(devices) > 1 or "_local_scalar_dense" in str(func) or "nonzero" in str(func):
            self.found.append(str(func))
        return out


def on_meta(x: Tensor | None) -> Tensor | None:
    return None if x is None else torch.empty_like(x, device="meta")


@pytest.mark.parametrize(
    ("modality", "config"),
    [
        ("image", tiny("image", alibi=AlibiConfig(per_layer=True))),
        ("audio", tiny("audio", alibi=AlibiConfig(per_layer=True), prenet_depth=1)),
        ("text", tiny("text", prenet_depth=1)),
    ],
)
def test_student_pass_never_waits_for_the_host(modality: str, config: ModelConfig) -> None:
    """On the meta device reading a value raises, and copies from the CPU show; ALiBi and the bias of padding are made
    on the device."""
    given = inputs(config, modality, padded=modality != "image")
    source, mask, padding = on_meta(given.source), on_meta(given.masks), on_meta(given.padding)
    noise, num_kept = on_meta(given.noise.flatten(0, 1)), given.views.kept.shape[1]
    with torch.device("meta"):
        student = Data2Vec(config).to("meta")  # its fixed positions, too
        targets = torch.empty(len(given.masks), given.masks.shape[2], config.encoder.dim)
    with _Crossings() as crossings:
        views = split_views(mask, num_kept)
        out = student(source, views, noise, modality=modality, padding=padding, skipped=frozenset({1}))
        terms = objective(config.modalities[modality], out, targets, source)
        torch.stack([term.sum for term in terms.values()]).sum().backward()
    assert crossings.found == []
