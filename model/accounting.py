"""Parameters and FLOPs as arithmetic on the configuration. No torch."""

import itertools
from typing import NamedTuple

from model.config import AudioConfig, ImageConfig, ModelConfig
from model.inventory import student_parameters
from model.sections import DecoderConfig, EncoderConfig, ModalityConfig


def num_parameters(config: ModelConfig, *, with_decoders: bool = True) -> int:
    """Parameters, the fixed position table of images included as in the reference's state dict."""
    table = 0 if config.image is None else config.image.num_tokens * config.encoder.dim
    kept = ("frontends.", "encoder.", *(("decoders.", "reconstruction.") if with_decoders else ()))
    return table + sum(one.numel for one in student_parameters(config) if one.name.startswith(kept))


def tokens_of(config: ModalityConfig, length: int) -> int:
    """Tokens T of an input of ``length``: waveform samples of audio, tokens of text; images have a fixed number."""
    if isinstance(config, ImageConfig):
        return config.num_tokens
    return config.num_frames(length) if isinstance(config, AudioConfig) else length


class Flops(NamedTuple):
    """FLOPs of one training sample by what a pipeline keeps together."""

    first: int
    """Frontend with its prenet."""
    block: int
    """Each shared block."""
    last: int
    """Decoder."""


def train_flops_per_sample(config: ModelConfig, modality: str, length: int, num_kept: int | None = None) -> int:
    """FLOPs of one training sample: teacher forward once, student forward and backward on every view.

    Mask-aware: the student's blocks see only kept tokens; the decoder sees all. A multiply-add counts as two,
    a backward pass as two forward passes; norms, activations, softmax and embeddings are left out.

    Args:
        config: the model.
        modality: of the sample.
        length: of its raw input, as in ``tokens_of``.
        num_kept: tokens V that a view keeps; None for what its masks keep.
    """
    parts = train_flops_by_part(config, modality, length, num_kept)
    return parts.first + config.encoder.depth * parts.block + parts.last


def train_flops_by_part(config: ModelConfig, modality: str, length: int, num_kept: int | None = None) -> Flops:
    """The same, in parts."""
    teacher = teacher_flops_by_part(config, modality, length)
    student = student_flops_by_part(config, modality, length, num_kept)
    return Flops(*(one + other for one, other in zip(teacher, student, strict=True)))


def teacher_flops_by_part(config: ModelConfig, modality: str, length: int) -> Flops:
    """FLOPs of one sample's target, in parts: what the teacher owns, and the student's prenet over whole samples where
    the teacher begins after it.
    """
    side, encoder = config.modalities[modality], config.encoder
    num_tokens = tokens_of(side, length)
    local, positions = _local_flops(side, encoder.dim, length), _position_flops(side, encoder.dim, num_tokens)
    owned = {"frontend": local + positions, "context": positions, "encoder": 0}[side.teacher_scope]
    block = _block_flops(encoder, side.num_extra_tokens + num_tokens)
    return Flops(owned + side.prenet_depth * block, block, 0)


def student_flops_by_part(config: ModelConfig, modality: str, length: int, num_kept: int | None = None) -> Flops:
    """FLOPs of one sample's views, forward and backward, in parts; arguments as of ``train_flops_per_sample``."""
    side, encoder = config.modalities[modality], config.encoder
    num_tokens = tokens_of(side, length)
    if num_kept is None:
        num_kept = num_tokens - side.mask.num_removed(num_tokens)
    local, positions = _local_flops(side, encoder.dim, length), _position_flops(side, encoder.dim, num_tokens)
    block = 3 * side.num_views * _block_flops(encoder, side.num_extra_tokens + num_kept)
    first = 3 * (local + side.num_views * positions) + side.prenet_depth * block
    return Flops(first, block, 3 * side.num_views * _decoder_flops(side, encoder.dim, num_tokens))


def _block_flops(encoder: EncoderConfig, num_tokens: int) -> int:
    dim = encoder.dim
    linears = 4 * dim * dim + 2 * dim * int(dim * encoder.mlp_ratio)
    return 2 * num_tokens * linears + 4 * num_tokens * num_tokens * dim


def _local_flops(config: ModalityConfig, dim: int, length: int) -> int:
    """Of the frontend's raw input -> tokens."""
    if isinstance(config, ImageConfig):
        return 2 * config.num_tokens * dim * config.in_channels * config.patch_size**2
    if not isinstance(config, AudioConfig):
        return 0
    total = 0
    for c_in, c_out, kernel, stride in _conv_layers(config):
        length = (length - kernel) // stride + 1
        total += 2 * length * c_in * c_out * kernel
    return total + 2 * length * config.conv_layers[-1][0] * dim


def _position_flops(config: ModalityConfig, dim: int, num_tokens: int) -> int:
    if not isinstance(config, AudioConfig):
        return 0
    return 2 * num_tokens * config.positions_depth * dim * dim // config.positions_groups * config.positions_kernel


def _decoder_flops(config: ModalityConfig, dim: int, num_tokens: int) -> int:
    decoder = config.decoder
    taps = decoder.kernel**2 if isinstance(config, ImageConfig) else decoder.kernel
    convolutions = sum(c_out * c_in // decoder.groups * taps for c_in, c_out in _widths(decoder, dim))
    return 2 * num_tokens * (convolutions + sum(before * after for before, after in _projection(decoder, dim)))


def _conv_layers(config: AudioConfig) -> list[tuple[int, int, int, int]]:
    """Channels in and out, kernel and stride of the feature encoder's layers."""
    widths = [1, *(channels for channels, _, _ in config.conv_layers)]
    return [(before, *layer) for before, layer in zip(widths, config.conv_layers, strict=False)]


def _widths(decoder: DecoderConfig, dim: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise([dim, *([decoder.dim] * decoder.num_layers)]))


def _projection(decoder: DecoderConfig, dim: int) -> list[tuple[int, int]]:
    between = [int(decoder.dim * decoder.projection_ratio)] * (decoder.projection_layers - 1)
    return list(itertools.pairwise([decoder.dim, *between, dim]))
