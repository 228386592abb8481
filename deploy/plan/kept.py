"""What each part of the network keeps or holds for one microbatch, in bytes. No torch.

``N``, ``V``, ``T``, ``R``, ``D`` as in ``model``; the extra tokens count as kept ones.
"""

import itertools
from dataclasses import dataclass

from deploy.plan.shapes import ELEMENT_BYTES, Microbatch
from model.config import AudioConfig, ImageConfig, TextConfig
from model.sections import ModalityConfig
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid

_INDEX_BYTES, _FLOAT_BYTES = 8, 4


@dataclass(frozen=True)
class Network:
    """A run's network as one rank computes it."""

    config: RunConfig
    grid: Grid
    on_cpu: bool

    @property
    def dim(self) -> int:
        """D."""
        return self.config.model.encoder.dim

    @property
    def element(self) -> int:
        """Bytes of a number."""
        return ELEMENT_BYTES[self.config.precision.dtype]

    @property
    def cut(self) -> float:
        """Share of the heads and hidden units that is here."""
        return 1 / self.grid.tp_size

    @property
    def mask_element(self) -> int:
        """Bytes of a number of a dropout mask."""
        return self.element if self.on_cpu else 1

    def side(self, one: Microbatch) -> ModalityConfig:
        """The microbatch's modality."""
        return self.config.model.modalities[one.modality]

    def rows(self, one: Microbatch) -> float:
        """N of frontends and decoders, whose rows tensor-parallel ranks share."""
        return max(1.0, one.rows / self.grid.tp_size)

    def hidden(self, one: Microbatch) -> float:
        """The student's hidden state (N, V, D) between linears."""
        return self.whole_hidden(one) * (self.cut if self.config.parallel.sequence_parallel else 1)

    def whole_hidden(self, one: Microbatch) -> float:
        """The same of all rows."""
        return self.element * one.rows * (one.extra + one.kept) * self.dim

    def hidden_at_ends(self, one: Microbatch) -> float:
        """The same of the rows of frontends and decoders."""
        return self.element * self.rows(one) * (one.extra + one.kept) * self.dim

    def full(self, one: Microbatch, width: float | None = None) -> float:
        """Whole sequences of the views that frontends and decoders see here (N, T, width)."""
        return self.element * self.rows(one) * one.tokens * (self.dim if width is None else width)


@dataclass(frozen=True)
class Parts:
    """What the parts of a network keep or hold for one microbatch, in bytes."""

    hidden: float
    """One hidden state of the student."""
    block: float
    """Kept by one of its blocks."""
    frontend: float
    """Kept by its frontend beside the blocks."""
    decoder: float
    """Kept by its decoder."""
    loss: float
    """Held when the backward pass begins."""
    teacher: float
    """Held while the teacher runs."""
    target: float
    """The target."""


def parts(network: Network, one: Microbatch) -> Parts:
    """All of them."""
    return Parts(
        network.hidden(one),
        block(network, one),
        frontend(network, one),
        decoder(network, one),
        loss(network, one),
        teacher(network, one),
        target(network, one),
    )


def block(network: Network, one: Microbatch) -> float:
    """Kept by one of the student's blocks: inputs of its linears, norms and GELU, its attention, its dropouts."""
    encoder, hidden = network.config.model.encoder, network.hidden(one)
    inner = 2 * encoder.mlp_ratio * network.cut
    masks = (encoder.dropout > 0) + (encoder.post_mlp_dropout > 0) + (encoder.activation_dropout > 0)
    inner_masks = encoder.mlp_ratio * network.cut * (encoder.activation_dropout > 0)
    of_mask = network.mask_element / network.element
    split = hidden * (4 + masks * of_mask)
    return split + network.whole_hidden(one) * (inner + inner_masks * of_mask) + attention(network, one)


def attention(network: Network, one: Microbatch) -> float:
    """Kept between the two projections of a block, the input of the second included (``model.attention.attend``)."""
    encoder, side, hidden = network.config.model.encoder, network.side(one), network.whole_hidden(one) * network.cut
    dropout, tokens = encoder.attention_dropout > 0, one.extra + one.kept
    pairs = one.rows * encoder.num_heads * network.cut * tokens**2
    if network.element < _FLOAT_BYTES and (network.on_cpu or side.alibi is not None):
        weights = _FLOAT_BYTES + network.element + dropout * network.mask_element
    elif network.on_cpu and (dropout or side.alibi is not None):  # torch's own unfused kernel
        weights = _FLOAT_BYTES * (1 + 2 * dropout)
    else:
        weights = network.element * (side.alibi is not None)  # the bias, kept for the fused kernel
    return 4 * hidden + weights * pairs


def frontend(network: Network, one: Microbatch) -> float:
    """Kept by the student's frontend beside its blocks, the input and the indices of the views included."""
    side, encoder = network.side(one), network.config.model.encoder
    kept = one.rows * (_INDEX_BYTES * (one.kept + one.tokens) + one.tokens)
    kept += network.full(one)  # gather keeps what it takes the visible tokens from
    if side.prenet_dropout > 0:
        kept += network.hidden_at_ends(one) * network.mask_element / network.element
    if encoder.input_dropout > 0:
        kept += network.hidden(one) * network.mask_element / network.element
    if side.alibi is not None:  # distances, and the bias that all blocks read
        kept += 2 * _FLOAT_BYTES * one.rows * encoder.num_heads * network.cut * one.kept**2
    if isinstance(side, ImageConfig):
        kept += network.hidden_at_ends(one) + network.element * one.samples * side.in_channels * side.image_size**2
    elif isinstance(side, AudioConfig):
        kept += network.hidden_at_ends(one) + network.cut * _convolutions(network, one, side)
        kept += (1 + 3 * side.positions_depth) * network.full(one)
    elif isinstance(side, TextConfig):
        kept += (1 + (side.dropout > 0)) * network.element * one.samples * one.tokens * network.dim
        kept += network.hidden_at_ends(one) * (side.prenet_depth > 0)
    return kept


def _convolutions(network: Network, one: Microbatch, side: AudioConfig) -> float:
    """Kept by the feature encoder: of each layer its norm's and its GELU's input and its output."""
    length, total = one.length, float(one.length)
    for channels, kernel, stride in side.conv_layers:
        length = (length - kernel) // stride + 1
        total += 3 * channels * length
    return network.element * one.samples * (total + side.conv_layers[-1][0] * length)


def decoder(network: Network, one: Microbatch) -> float:
    """Kept by the decoder: of each convolution its input and those of norm and GELU, then of the linears."""
    side = network.side(one)
    section = side.decoder
    widths = [network.dim, *([section.dim] * section.num_layers)]
    convolved = sum(before + 2 * after for before, after in itertools.pairwise(widths))
    projected = section.dim + 2 * int(section.dim * section.projection_ratio) * (section.projection_layers - 1)
    gathered = 2 * network.dim  # what the two gathers, before and after it, take from
    dropped = network.hidden_at_ends(one) * network.mask_element / network.element * (section.input_dropout > 0)
    return network.full(one, convolved + projected + gathered) + dropped + _INDEX_BYTES * network.rows(one) * one.tokens


def loss(network: Network, one: Microbatch) -> float:
    """Held at the beginning of the backward pass: targets, both sides of the loss in fp32, and the first gradients."""
    at_removed = network.rows(one) * one.removed * network.dim
    predictions = network.element * at_removed * (network.element < _FLOAT_BYTES)  # in fp32 the losses share them
    terms = 1 + (network.side(one).loss.reconstruction_weight > 0)
    both = 2 * _FLOAT_BYTES * at_removed * terms + predictions
    gradients = _FLOAT_BYTES * at_removed + network.full(one)
    return target(network, one) + both + gradients + network.hidden_at_ends(one)


def teacher(network: Network, one: Microbatch) -> float:
    """Most that there is while the teacher runs: in a block's MLP, its attention, or around a target; and what the
    student gave.
    """
    encoder, side = network.config.model.encoder, network.side(one)
    tokens = one.extra + one.tokens
    hidden = network.element * one.samples * tokens * network.dim
    pairs = one.samples * encoder.num_heads * network.cut * tokens**2
    weights, bias = 0, _FLOAT_BYTES * (side.alibi is not None)
    if network.element < _FLOAT_BYTES and (network.on_cpu or side.alibi is not None):
        weights = 2 * _FLOAT_BYTES + network.element
    attending = hidden * (1 + 5 * network.cut) + pairs * weights
    thinking = hidden * (2 + 2 * encoder.mlp_ratio * network.cut)
    averaging = 2 * hidden + 3 * target(network, one)
    predicted = network.rows(one) * one.removed + one.samples * one.tokens
    given = network.hidden_at_ends(one) + network.element * network.dim * predicted
    return max(attending, thinking, averaging) + pairs * bias + target(network, one) + given


def target(network: Network, one: Microbatch) -> float:
    """The target (B, T, D) in fp32."""
    return _FLOAT_BYTES * one.samples * one.tokens * network.dim
