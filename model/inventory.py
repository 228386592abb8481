"""Names and shapes of all parameters as arithmetic on the configuration, in the order of the network. No torch."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from model.config import PADDING_ID, AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.sections import DecoderConfig, EncoderConfig, ModalityConfig


class Parameter(NamedTuple):
    """One parameter of the network, or the part of it that a tensor-parallel rank holds."""

    name: str
    shape: tuple[int, ...]
    is_cut: bool
    """Whether tensor parallelism cuts it."""

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def student_parameters(config: ModelConfig, numbers: range | None = None, tp_size: int = 1) -> list[Parameter]:
    """The student's parameters on one rank, as ``Data2Vec.named_parameters`` gives them.

    Args:
        config: the model.
        numbers: shared blocks of this pipeline stage; None for all.
        tp_size: ranks that hold a part each of what can be cut.
    """
    numbers = range(config.encoder.depth) if numbers is None else numbers
    cutter = _Cutter(tp_size)
    parameters: list[Parameter] = []
    if numbers.start == 0:
        for name, side in config.modalities.items():
            parameters += _under(f"frontends.{name}", _frontend(side, config.encoder, cutter))
    for number in numbers:
        parameters += _under(f"encoder.blocks.{number}", _block(config.encoder, cutter))
    if numbers.stop == config.encoder.depth:
        for name, side in config.modalities.items():
            parameters += _under(f"decoders.{name}", _decoder(side, config.encoder.dim))
        if config.image is not None and config.image.loss.reconstruction_weight > 0:
            parameters += _under("reconstruction", _linear(config.encoder.dim, config.encoder.dim))
    return parameters


def teacher_parameters(config: ModelConfig, numbers: range | None = None, tp_size: int = 1) -> list[Parameter]:
    """Those of them that the teacher has too, see ``ModalityConfig.teacher_scope``."""
    return [one for one in student_parameters(config, numbers, tp_size) if _is_teachers(one.name, config)]


def _is_teachers(name: str, config: ModelConfig) -> bool:
    part, _, rest = name.partition(".")
    if part != "frontends":
        return part == "encoder"
    modality, _, inner = rest.partition(".")
    scope = config.modalities[modality].teacher_scope
    return scope == "frontend" or (scope == "context" and not inner.startswith("local."))


class _Cutter:
    """Makes parameters of a layer that tensor parallelism cuts."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, name: str, shape: tuple[int, ...], dim: int) -> Parameter:
        """One of equal parts along ``dim``, the last of which may be padded."""
        if self._size == 1:
            return Parameter(name, shape, False)
        part = -(-shape[dim] // self._size)
        return Parameter(name, (*shape[:dim], part, *shape[dim + 1 :]), True)


def _under(prefix: str, parameters: list[Parameter]) -> Iterator[Parameter]:
    return (one._replace(name=f"{prefix}.{one.name}") for one in parameters)


def _whole(name: str, *shape: int) -> Parameter:
    return Parameter(name, shape, False)


def _linear(before: int, after: int) -> list[Parameter]:
    return [_whole("weight", after, before), _whole("bias", after)]


def _norm(dim: int) -> list[Parameter]:
    return [_whole("weight", dim), _whole("bias", dim)]


def _block(encoder: EncoderConfig, cut: _Cutter) -> list[Parameter]:
    dim, hidden = encoder.dim, int(encoder.dim * encoder.mlp_ratio)
    return [
        *_under("norm1", _norm(dim)),
        *_under("attention.qkv", [cut("weight", (3 * dim, dim), 0), cut("bias", (3 * dim,), 0)]),
        *_under("attention.output", [cut("weight", (dim, dim), 1), _whole("bias", dim)]),
        *_under("norm2", _norm(dim)),
        *_under("mlp.up", [cut("weight", (hidden, dim), 0), cut("bias", (hidden,), 0)]),
        *_under("mlp.down", [cut("weight", (dim, hidden), 1), _whole("bias", dim)]),
    ]


def _frontend(side: ModalityConfig, encoder: EncoderConfig, cut: _Cutter) -> list[Parameter]:
    dim = encoder.dim
    parameters: list[Parameter] = []
    if side.num_extra_tokens:
        parameters.append(_whole("extra_tokens", 1, side.num_extra_tokens, dim))
    if side.alibi is not None:
        layers = side.prenet_depth + encoder.depth if side.alibi.per_layer else 1
        per_head = (layers, 1, encoder.num_heads, 1, 1)
        scale = cut("alibi_scale", per_head, 2) if side.alibi.per_head else _whole("alibi_scale", layers, 1, 1, 1, 1)
        parameters.append(scale)
    if not isinstance(side, TextConfig) or side.prenet_depth:
        parameters += _under("norm", _norm(dim))
    for number in range(side.prenet_depth):
        parameters += _under(f"blocks.{number}", _block(encoder, cut))
    parameters += _under("local", _local(side, dim, cut))
    if isinstance(side, AudioConfig):
        shape = (dim, dim // side.positions_groups, side.positions_kernel)
        for number in range(side.positions_depth):
            parameters += _under(f"positions.{number}", [_whole("weight", *shape), _whole("bias", dim)])
    return parameters


def _local(side: ModalityConfig, dim: int, cut: _Cutter) -> list[Parameter]:
    if isinstance(side, ImageConfig):
        patch = (side.in_channels, side.patch_size, side.patch_size)
        return [_whole("weight", dim, *patch), _whole("bias", dim)]
    if isinstance(side, AudioConfig):
        parameters: list[Parameter] = []
        before = 1
        for number, (channels, kernel, _) in enumerate(side.conv_layers):
            parameters.append(_whole(f"layers.{number}.convolution.weight", channels, before, kernel))
            parameters += _under(f"layers.{number}.norm", _norm(channels))
            before = channels
        return [*parameters, *_under("norm", _norm(before)), *_under("projection", _linear(before, dim))]
    assert isinstance(side, TextConfig)
    table = cut("tokens.weight", (side.vocab_size, dim), 0)
    return [table, _whole("positions.weight", side.max_positions + PADDING_ID + 1, dim), *_under("norm", _norm(dim))]


def _decoder(side: ModalityConfig, dim: int) -> list[Parameter]:
    decoder = side.decoder
    parameters: list[Parameter] = []
    taps = (decoder.kernel,) * (2 if isinstance(side, ImageConfig) else 1)
    for number, (before, after) in enumerate(itertools.pairwise([dim, *([decoder.dim] * decoder.num_layers)])):
        weight = _whole("weight", after, before // decoder.groups, *taps)
        parameters += _under(f"layers.{number}", [weight, _whole("bias", after)])
    return [*parameters, *_under("projection", _projection(decoder, dim))]


def _projection(decoder: DecoderConfig, dim: int) -> list[Parameter]:
    between = [int(decoder.dim * decoder.projection_ratio)] * (decoder.projection_layers - 1)
    widths = list(itertools.pairwise([decoder.dim, *between, dim]))
    if len(widths) == 1:
        return _linear(*widths[0])
    return [
        one for number, (before, after) in enumerate(widths) for one in _under(str(2 * number), _linear(before, after))
    ]
