"""Options of audio that the committed golden does not show, against the second implementation of ``plain``.

Two prenet blocks, padding, ALiBi with a trained scale per layer and head (some below zero), six heads, even kernels of
positions and decoder, a projection of three linears, K below the depth, layer norm per layer with instance norm of the
mean, smooth L1; a teacher with other weights that reads the student's tokens.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.config import AudioConfig, ModelConfig
from model.losses import objective
from model.masking import block_masks_1d, split_views
from model.sections import AlibiConfig, DecoderConfig, EncoderConfig, LossConfig, MaskConfig, TargetConfig
from tests.unit.model.inputs import another_teacher, shaken
from tests.unit.model.plain import Plain, slopes, smooth_l1, standard

DIM, HEADS, PRENET, DEPTH, TOP_K, NUM_VIEWS, BETA = 24, 6, 2, 3, 2, 3, 0.7
LAYERS = ((8, 10, 5), (12, 3, 2), (12, 2, 2))
LENGTHS = (457, 330)
CONFIG = ModelConfig(
    encoder=EncoderConfig(depth=DEPTH, dim=DIM, num_heads=HEADS, norm_eps=1e-5),
    audio=AudioConfig(
        num_views=NUM_VIEWS,
        conv_layers=LAYERS,
        positions_width=8,
        positions_depth=2,
        positions_groups=4,
        prenet_depth=PRENET,
        alibi=AlibiConfig(per_layer=True, per_head=True),
        teacher_scope="context",
        mask=MaskConfig(kind="block", prob=0.4, adjust=0.05, length=3),
        decoder=DecoderConfig(dim=DIM, groups=3, kernel=6, num_layers=2, projection_layers=3, projection_ratio=1.5),
        target=TargetConfig(top_k=TOP_K, instance_norm_layer=False, layer_norm_layer=True, instance_norm=True),
        loss=LossConfig(beta=BETA, scale=None),
    ),
)
SHARED = [f"encoder.blocks.{layer}" for layer in range(DEPTH)]
BLOCKS = [f"frontends.audio.blocks.{layer}" for layer in range(PRENET)] + SHARED


class PlainAudio(Plain):
    """Features, positions, encoder."""

    def tokens(self, waveform: Tensor) -> Tensor:
        """(L,) -> (T, D), frame by frame."""
        x = waveform.unsqueeze(0)  # channels first
        for layer, (_, kernel, stride) in enumerate(LAYERS):
            name = f"frontends.audio.local.layers.{layer}"
            weight = self.w[f"{name}.convolution.weight"]
            starts = range(0, x.shape[1] - kernel + 1, stride)
            frames = torch.stack([(weight * x[:, start : start + kernel]).sum((1, 2)) for start in starts])
            x = functional.gelu(self.norm(f"{name}.norm", frames, 1e-5)).T
        return self.linear("frontends.audio.local.projection", self.norm("frontends.audio.local.norm", x.T, 1e-5))

    def encode(self, tokens: Tensor, num_valid: int, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Outputs and MLP outputs of the shared blocks for one sample (T, D) of which ``mask`` is removed."""
        kept = [token for token in range(len(tokens)) if not mask[token]]
        positions = tokens * ~mask.unsqueeze(1)
        for layer in range(2):
            positions = self.convolution(f"frontends.audio.positions.{layer}", positions, groups=4)
        x = self.norm("frontends.audio.norm", tokens[kept] + positions[kept])
        distances = torch.tensor([[abs(i - j) for j in kept] for i in kept])
        padded = torch.tensor([0.0 if j < num_valid else -torch.inf for j in kept])
        outputs = []
        for scales, name in zip(self.w["frontends.audio.alibi_scale"], BLOCKS, strict=True):
            factors = [-slope * max(scale, 0.0) for slope, scale in zip(slopes(HEADS), scales.flatten(), strict=True)]
            x, inner = self.block(name, x, torch.stack([factor * distances + padded for factor in factors]))
            outputs.append((x, inner))
        return outputs[PRENET:]


def frames_of(length: int) -> int:
    for _, kernel, stride in LAYERS:
        length = (length - kernel) // stride + 1
    return length


def test_every_option_together() -> None:
    student, teacher = shaken(CONFIG), another_teacher(CONFIG)
    for model in (student, teacher):
        with torch.no_grad():
            model.frontends["audio"].alibi_scale[1:, :, 2] -= 1.5
    generator = torch.Generator().manual_seed(2)
    source = torch.randn(2, LENGTHS[0], generator=generator, dtype=torch.float64)
    source[1, LENGTHS[1] :] = 0
    num_tokens, valid = frames_of(LENGTHS[0]), [frames_of(length) for length in LENGTHS]
    assert valid[1] < num_tokens
    padding = torch.arange(num_tokens) >= torch.tensor(valid).unsqueeze(1)
    masks = block_masks_1d(2 * NUM_VIEWS, num_tokens, CONFIG.audio.mask, generator)
    views = split_views(masks.view(2, NUM_VIEWS, -1), num_tokens - CONFIG.audio.mask.num_removed(num_tokens))
    noise = 0.01 * torch.randn(*views.removed.shape, DIM, generator=generator, dtype=torch.float64)
    out = student(source, views, noise, modality="audio", padding=padding)
    targets = teacher.targets(source, out, modality="audio", padding=padding).targets

    plain, other = (
        PlainAudio({name: value.detach() for name, value in model.state_dict().items()}, HEADS, eps=1e-5)
        for model in (student, teacher)
    )
    tokens = [plain.tokens(waveform) for waveform in source]
    everything = torch.zeros(num_tokens, dtype=torch.bool)
    goals = []
    for sample in range(2):
        layers = [inner for _, inner in other.encode(tokens[sample], valid[sample], everything)][-TOP_K:]
        goals.append(standard(sum(standard(layer, -1) for layer in layers) / TOP_K, 0))
    torch.testing.assert_close(targets.double(), torch.stack(goals), rtol=0, atol=5e-6)
    total, full = 0.0, torch.zeros(num_tokens, DIM, dtype=torch.float64)
    for row, mask in enumerate(masks):
        sample = row // NUM_VIEWS
        encoded = plain.encode(tokens[sample], valid[sample], mask)[-1][0]
        torch.testing.assert_close(out.encoded[row], encoded, rtol=0, atol=2e-7)
        full[~mask], full[mask] = encoded, noise[row]
        predicted = plain.decode("audio", full, num_layers=2, groups=3, residual=True)[mask]
        torch.testing.assert_close(out.prediction[row], predicted, rtol=0, atol=2e-7)
        total += smooth_l1(predicted, goals[sample][mask], BETA, DIM**-0.5)
    terms = objective(CONFIG.audio, out, targets, source)
    assert terms.keys() == {"regression"}
    assert terms["regression"].sum.item() == pytest.approx(total, rel=1e-6)
    assert terms["regression"].count == masks.sum()
