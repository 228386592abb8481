"""Rules that the goldens cannot show, because their configurations do not meet them."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import AlibiConfig, DecoderConfig, ModelConfig
from model.data2vec import Data2Vec
from model.decoder import Decoder2d
from model.initialization import initialize
from model.losses import objective
from model.masking import split_views
from pretrain.recipes.registry import recipe


def tiny(*, alibi: AlibiConfig | None = None, add_positions: Any = "none", **image: Any) -> ModelConfig:
    config = recipe("image-tiny").model
    decoder = dataclasses.replace(config.image.decoder, add_positions=add_positions)
    return dataclasses.replace(config, image=dataclasses.replace(config.image, alibi=alibi, decoder=decoder, **image))


def initialized(config: ModelConfig) -> Data2Vec:
    model = Data2Vec(config)
    initialize(model, 0)
    return model


def images(config: ModelConfig) -> Tensor:
    image = config.image
    shape = (2, image.in_channels, image.image_size, image.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_only_the_last_blocks_are_averaged() -> None:
    """Both committed configurations average every block; here only the last of several counts."""
    config = tiny()
    config = dataclasses.replace(config, target=dataclasses.replace(config.target, top_k=1))
    assert config.encoder.depth > 1
    model, last = initialized(config), []
    model.encoder.blocks[-1].mlp.register_forward_hook(lambda module, inputs, output: last.append(output))
    targets = model.targets(images(config)).targets
    inner = last[0][:, config.image.num_extra_tokens :].transpose(1, 2)
    expected = torch.nn.functional.instance_norm(inner).transpose(1, 2)
    expected = torch.nn.functional.layer_norm(expected, expected.shape[-1:])
    torch.testing.assert_close(targets, expected, rtol=0, atol=1e-5)


def test_negative_alibi_scale_acts_as_zero() -> None:
    """fairseq clamps the scale from below (``clamp_min(0)``)."""
    off = initialized(tiny())
    negative = initialized(tiny(alibi=AlibiConfig(scale=-0.5)))
    positive = initialized(tiny(alibi=AlibiConfig(scale=0.5)))
    weights = off.state_dict()
    for model in (negative, positive):
        model.load_state_dict(
            weights | {"frontends.image.alibi_scale": model.state_dict()["frontends.image.alibi_scale"]}
        )
    source = images(off.config)
    torch.testing.assert_close(negative.features(source), off.features(source), rtol=0, atol=1e-5)
    assert not torch.allclose(positive.features(source), off.features(source), atol=1e-3)


def test_decoder_without_residual_is_the_bare_chain_of_layers() -> None:
    decoder = Decoder2d(DecoderConfig(dim=8, groups=2, num_layers=3, residual=False), dim=8, grid_size=3)
    x = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
    expected = x.transpose(1, 2).unflatten(2, (3, 3))
    for layer in decoder.layers:
        expected = layer(expected)
    expected = decoder.projection(expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(decoder(x), expected, rtol=0, atol=0)


def test_positions_go_to_all_tokens_or_to_removed_ones() -> None:
    for where in ("all", "masked"):
        config = tiny(add_positions=where)
        model, inputs = initialized(config), []
        model.decoders["image"].register_forward_pre_hook(lambda module, given, seen=inputs: seen.append(given[0]))
        mask = torch.ones(2, 1, config.image.num_tokens, dtype=torch.bool)
        mask[:, :, : config.image.num_kept] = False
        views = split_views(mask, config.image.num_kept)
        out = model(images(config), views, torch.zeros(*views.removed.shape, config.encoder.dim))
        positions = model.state_dict()["frontends.image.positions"]
        kept = out.encoded[:, config.image.num_extra_tokens :]
        shift = positions[:, : config.image.num_kept] if where == "all" else 0
        torch.testing.assert_close(inputs[0][:, : config.image.num_kept], kept + shift, rtol=0, atol=1e-6)
        removed = inputs[0][:, config.image.num_kept :]
        torch.testing.assert_close(removed, positions[:, config.image.num_kept :].expand_as(removed), rtol=0, atol=0)


def test_only_the_first_extra_token_may_start_at_zero() -> None:
    tokens = initialized(tiny(num_extra_tokens=3, extra_tokens_zero_init=True)).frontends["image"].extra_tokens
    assert tokens[:, 0].abs().max() == 0
    assert 0.7 < tokens[:, 1:].std() < 1.3


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


def test_student_pass_never_waits_for_the_host() -> None:
    """On the meta device reading a value raises, and copies from the CPU show; ALiBi is made on the device."""
    config = tiny(alibi=AlibiConfig(per_layer=True))
    with torch.device("meta"):
        student = Data2Vec(config)
        source = torch.empty(images(config).shape)
        mask = torch.empty(2, 3, config.image.num_tokens, dtype=torch.bool)
        targets = torch.empty(2, config.image.num_tokens, config.encoder.dim)
        noise = torch.empty(6, config.image.num_tokens - config.image.num_kept, config.encoder.dim)
    with _Crossings() as crossings:
        views = split_views(mask, config.image.num_kept)
        terms = objective(config, student(source, views, noise), targets, views, source)
        torch.stack([term.sum for term in terms.values()]).sum().backward()
    assert crossings.found == []
