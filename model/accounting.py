"""Parameters and FLOPs as arithmetic on ``ModelConfig``. No torch."""

import itertools

from model.config import DecoderConfig, ModelConfig


def num_parameters(config: ModelConfig, *, with_decoders: bool = True) -> int:
    """Parameters, the fixed position table included as in the reference's state dict."""
    dim, image = config.encoder.dim, config.image
    hidden = int(dim * config.encoder.mlp_ratio)
    block = 4 * dim * dim + 4 * dim + 2 * dim * hidden + hidden + dim + 4 * dim
    patch = dim * image.in_channels * image.patch_size**2 + dim
    frontend = patch + image.num_tokens * dim + image.num_extra_tokens * dim + 2 * dim + image.prenet_depth * block
    if image.alibi is not None:
        layers = image.prenet_depth + config.encoder.depth if image.alibi.per_layer else 1
        frontend += layers * (config.encoder.num_heads if image.alibi.per_head else 1)
    total = frontend + config.encoder.depth * block
    if with_decoders:
        total += sum(
            c_out * (c_in // image.decoder.groups * image.decoder.kernel**2 + 1)
            for c_in, c_out in _widths(image.decoder, dim)
        )
        total += image.decoder.dim * dim + dim
        if config.loss.reconstruction_weight > 0:
            total += dim * dim + dim
    return total


def train_flops_per_sample(config: ModelConfig) -> int:
    """FLOPs of one training sample: teacher forward once, student forward and backward on every view.

    Mask-aware: the student's blocks see only kept tokens; the decoder sees all. A multiply-add counts as two,
    a backward pass as two forward passes; norms, activations and softmax are left out.
    """
    image, dim = config.image, config.encoder.dim
    num_blocks = image.prenet_depth + config.encoder.depth
    patch = 2 * image.num_tokens * dim * image.in_channels * image.patch_size**2
    teacher = patch + num_blocks * _block_flops(config, image.num_extra_tokens + image.num_tokens)
    view = num_blocks * _block_flops(config, image.num_extra_tokens + image.num_kept) + _decoder_flops(config)
    return teacher + 3 * (patch + config.num_views * view)


def _block_flops(config: ModelConfig, num_tokens: int) -> int:
    dim = config.encoder.dim
    linears = 4 * dim * dim + 2 * dim * int(dim * config.encoder.mlp_ratio)
    return 2 * num_tokens * linears + 4 * num_tokens * num_tokens * dim


def _decoder_flops(config: ModelConfig) -> int:
    decoder, dim, tokens = config.image.decoder, config.encoder.dim, config.image.num_tokens
    convolutions = sum(c_out * c_in // decoder.groups * decoder.kernel**2 for c_in, c_out in _widths(decoder, dim))
    return 2 * tokens * (convolutions + decoder.dim * dim)


def _widths(decoder: DecoderConfig, dim: int) -> list[tuple[int, int]]:
    widths = [dim, *([decoder.dim] * decoder.num_layers)]
    return list(itertools.pairwise(widths))
