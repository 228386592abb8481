import io
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from data_pipelines.config import ImageTransformConfig
from data_pipelines.transforms.image import load_image
from deploy.export.huggingface import (
    difference,
    round_parameters,
    transformers_config,
    write_model,
    write_preprocessor,
)
from deploy.export.modeling_data2vec2 import Data2Vec2Model
from model.config import AlibiConfig, EncoderConfig, ImageConfig, LossConfig, ModelConfig, TargetConfig
from model.data2vec import Data2Vec
from model.initialization import initialize
from pretrain.recipes.tiny import image_tiny


def colour_config(**image: object) -> ModelConfig:
    """Three heads (no power of two), a prenet, colour, patches that do not fill a power of two."""
    return ModelConfig(
        encoder=EncoderConfig(depth=2, dim=24, num_heads=3),
        image=ImageConfig(image_size=48, patch_size=8, prenet_depth=2, **image),
        target=TargetConfig(top_k=2),
        loss=LossConfig(cls_weight=0.0),
    )


CONFIGS = {
    "tiny": image_tiny().model,
    "prenet": colour_config(),
    "no-extra-token": colour_config(num_extra_tokens=0),
    "two-extra-tokens": colour_config(num_extra_tokens=2),
    "alibi": colour_config(alibi=AlibiConfig(per_layer=True)),
    "alibi-shared": colour_config(alibi=AlibiConfig(distance="euclidean", per_head=False, learned=False)),
}


def random_encoder(config: ModelConfig) -> Data2Vec:
    """Every parameter differs from its initial value, norms and biases too."""
    encoder = Data2Vec(config, with_decoders=False)
    initialize(encoder, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return encoder.eval()


def noise(config: ModelConfig) -> torch.Tensor:
    size = config.image.image_size
    return torch.randn(4, config.image.in_channels, size, size, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_reloaded_export_is_equal(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """Stored in any precision, the difference in fp32 arithmetic is 0."""
    encoder, images = random_encoder(CONFIGS[name]), noise(CONFIGS[name])
    round_parameters(encoder, dtype)
    write_model(encoder, dtype, tmp_path)
    assert difference(encoder.features(images), tmp_path, images) == 0.0
    assert AutoModel.from_pretrained(tmp_path).dtype == dtype


@torch.no_grad()
def test_difference_is_seen(tmp_path: Path) -> None:
    encoder, images = random_encoder(CONFIGS["alibi"]), noise(CONFIGS["alibi"])
    write_model(encoder, torch.float32, tmp_path)
    encoder.frontends["image"].alibi_scale.mul_(1.01)
    assert 1e-6 < difference(encoder.features(images), tmp_path, images) < 0.1


@torch.no_grad()
def test_bf16_arithmetic(tmp_path: Path) -> None:
    """Attention is rounded elsewhere than in our model, so this is close only; see also the tests in fp32."""
    encoder, images = random_encoder(CONFIGS["alibi"]), noise(CONFIGS["alibi"])
    write_model(encoder, torch.bfloat16, tmp_path)
    output = AutoModel.from_pretrained(tmp_path)(images).last_hidden_state
    assert output.dtype == torch.bfloat16
    assert (output - encoder.to(torch.bfloat16).features(images.bfloat16())).abs().max() < 0.1


def test_keys_and_hidden_states(tmp_path: Path) -> None:
    encoder = random_encoder(CONFIGS["prenet"])
    write_model(encoder, torch.float32, tmp_path)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(images, output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, 1 + 36, 24)
    assert len(output.hidden_states) == 1 + 2 + 2
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 1:].mean(dim=1))
    assert torch.equal(model(images, return_dict=False)[0], output.last_hidden_state)
    with pytest.raises(ValueError, match=r"pixel_values: expected \(batch, 3, 48, 48\), got \(2, 3, 64, 64\)"):
        model(torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 61])
def test_preprocessor_equals_ours(tmp_path: Path, channels: int, side: int) -> None:
    config = ImageTransformConfig(size=28, channels=channels, mean=(0.25,) * channels, std=(0.3,) * channels)
    write_preprocessor(config, tmp_path)
    shape = (side, side, 3) if channels == 3 else (side, side)
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, shape, dtype=numpy.uint8))
    file = io.BytesIO()
    image.save(file, "png")
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="np")["pixel_values"][0]
    numpy.testing.assert_allclose(theirs, load_image(file.getvalue(), config), atol=1e-6)


def test_fresh_model_has_our_positions_and_initial_scales() -> None:
    """Without weights to load, as when a user trains the class from scratch."""
    ours = random_encoder(CONFIGS["alibi"])
    fresh = Data2Vec2Model(transformers_config(CONFIGS["alibi"], torch.float32)).state_dict()
    theirs = {name: value.shape for name, value in fresh.items()}
    assert theirs == {name: value.shape for name, value in ours.state_dict().items()}
    assert torch.equal(fresh["frontends.image.positions"], ours.state_dict()["frontends.image.positions"])
    assert fresh["frontends.image.alibi_scale"].unique().tolist() == [1.0]
    assert 0.015 < fresh["encoder.blocks.0.mlp.up.weight"].std() < 0.025
    assert fresh["frontends.image.norm.bias"].abs().max() == 0
