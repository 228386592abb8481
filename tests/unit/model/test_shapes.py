"""Every tensor of the released image configurations, by fairseq's names; parameters and FLOPs as arithmetic."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deploy.export.fairseq import fairseq_name, from_fairseq, our_name, to_fairseq
from model.accounting import num_parameters, train_flops_per_sample
from model.config import AlibiConfig, ConfigError, ModelConfig
from model.data2vec import Data2Vec
from model.initialization import initialize
from model.losses import objective
from model.masking import block_masks_2d, split_views
from pretrain.recipes.registry import recipe
from tests.golden.tables import state_dict_shapes

CONFIGS = {
    "image-base": "base_images_only_task",
    "image-large": "large_images_only_task",
    "image-huge16": "huge_images_only_task",
    "image-huge14": "huge_images14_only_task",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_state_dict_equals_the_references(name: str) -> None:
    expected = state_dict_shapes()[CONFIGS[name]]
    with torch.device("meta"):
        model = Data2Vec(recipe(name).model)
    shapes = {fairseq_name(key): list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == expected["shapes"]
    assert {our_name(key) for key in shapes} == model.state_dict().keys()
    assert num_parameters(recipe(name).model) == expected["total"]
    assert num_parameters(recipe(name).model, with_decoders=False) == expected["encoder"]


@pytest.mark.parametrize("alibi", [None, AlibiConfig(), AlibiConfig(per_layer=True, per_head=False)])
@pytest.mark.parametrize("reconstruction", [0.0, 1.0])
def test_parameter_count_of_options(alibi: AlibiConfig | None, reconstruction: float) -> None:
    config = recipe("image-tiny").model
    config = dataclasses.replace(
        config,
        encoder=dataclasses.replace(config.encoder, dim=16),
        image=dataclasses.replace(
            config.image,
            alibi=alibi,
            prenet_depth=1,
            num_extra_tokens=2,
            decoder=dataclasses.replace(config.image.decoder, dim=8),
        ),
        loss=dataclasses.replace(config.loss, reconstruction_weight=reconstruction),
    )
    with torch.device("meta"):
        model = Data2Vec(config)
    assert num_parameters(config) == sum(value.numel() for value in model.state_dict().values())


def test_qkv_changes_layout_there_and_back() -> None:
    heads, width = 4, 3
    fairseq = torch.arange(3 * heads * width)  # row numbers: part (q, k, v), head, channel
    ours = from_fairseq("blocks.0.attn.qkv.weight", fairseq, heads)
    assert ours.view(heads, 3, width)[1].tolist() == [[3, 4, 5], [15, 16, 17], [27, 28, 29]]
    assert torch.equal(to_fairseq("encoder.blocks.0.attention.qkv.bias", ours, heads), fairseq)
    assert torch.equal(from_fairseq("blocks.0.attn.proj.weight", fairseq, heads), fairseq)


def test_unknown_tensor_is_named() -> None:
    with pytest.raises(ConfigError, match="shared_decoder"):
        our_name("shared_decoder.blocks.0.0.weight")


def measured_flops(config: ModelConfig) -> int:
    """What torch counts in one training sample: teacher forward, student forward and backward."""
    student, teacher = Data2Vec(config), Data2Vec(config, with_decoders=False)
    initialize(student, 0)
    initialize(teacher, 0)
    image = config.image
    source = torch.randn(1, image.in_channels, image.image_size, image.image_size, requires_grad=True)
    masks = block_masks_2d(config.num_views, image.grid_size, image.mask, torch.Generator().manual_seed(0))
    views = split_views(masks.unsqueeze(0), image.num_kept)
    noise = torch.zeros(*views.removed.shape, config.encoder.dim)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            goal = teacher.targets(source)
        out = student(source, views, noise)
        terms = objective(config, out, goal.targets, views, source)
        sum(term.sum for term in terms.values()).backward()  # type: ignore[union-attr]
    return counter.get_total_flops()


def test_flops_equal_what_torch_counts() -> None:
    """torch's counter knows no attention on the CPU, and takes grouped convolutions for dense ones in backward:
    so attention is added here, and the decoder has one group."""
    config = recipe("image-tiny").model
    decoder = dataclasses.replace(config.image.decoder, groups=1)
    config = dataclasses.replace(config, image=dataclasses.replace(config.image, decoder=decoder))
    image, encoder = config.image, config.encoder
    squares = (1 + image.num_tokens) ** 2 + 3 * config.num_views * (1 + image.num_kept) ** 2
    attention = 4 * squares * encoder.dim * encoder.depth
    assert measured_flops(config) + attention == pytest.approx(train_flops_per_sample(config), rel=1e-5)
