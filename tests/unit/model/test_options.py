"""Options of images that the committed golden does not show, against the second implementation of ``plain``.

Per-layer and per-head ALiBi, an even decoder kernel, positions at removed tokens, end-of-block targets, batch norm per
layer, layer norm and instance norm of the mean, smooth L1, several extra tokens, reconstruction.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.config import ImageConfig, ModelConfig
from model.losses import objective
from model.masking import block_masks_2d, split_views
from model.sections import AlibiConfig, DecoderConfig, EncoderConfig, LossConfig, MaskConfig, TargetConfig
from tests.unit.model.inputs import shaken
from tests.unit.model.plain import Plain, slopes, smooth_l1, standard

GRID, PATCH, DIM, HEADS, NUM_EXTRA, NUM_VIEWS, BETA, SCALE = 4, 4, 48, 4, 2, 3, 0.7, 0.3
TOKENS = GRID * GRID
CONFIG = ModelConfig(
    encoder=EncoderConfig(depth=2, dim=DIM, num_heads=HEADS),
    image=ImageConfig(
        num_views=NUM_VIEWS,
        image_size=GRID * PATCH,
        patch_size=PATCH,
        prenet_depth=1,
        num_extra_tokens=NUM_EXTRA,
        alibi=AlibiConfig(per_layer=True, per_head=True, distance="euclidean"),
        mask=MaskConfig(prob=0.5, adjust=0.1, length=2, inverse=True),
        decoder=DecoderConfig(dim=32, groups=4, kernel=4, num_layers=2, add_positions="masked"),
        target=TargetConfig(
            top_k=2,
            end_of_block=True,
            batch_norm_layer=True,
            instance_norm_layer=False,
            layer_norm=True,
            instance_norm=True,
        ),
        loss=LossConfig(beta=BETA, scale=SCALE, cls_weight=0.02, cls_rows=6, reconstruction_weight=0.5),
    ),
)


class PlainImages(Plain):
    """Patches, encoder, targets, 2-D decoder."""

    def __init__(self, weights: dict[str, Tensor], source: Tensor) -> None:
        super().__init__(weights, HEADS, eps=1e-6)
        patch = weights["frontends.image.local.weight"], weights["frontends.image.local.bias"]
        self.tokens = functional.conv2d(source, *patch, stride=PATCH).flatten(2).transpose(1, 2)
        self.positions = weights["frontends.image.positions"][0]

    def encode(self, sample: int, kept: list[int]) -> list[Tensor]:
        """Outputs of the shared blocks for one sample that keeps some tokens."""
        x = torch.cat([self.w["frontends.image.extra_tokens"][0], (self.tokens[sample] + self.positions)[kept]])
        bias = torch.zeros(HEADS, len(x), len(x), dtype=torch.float64)
        for a, i in enumerate(kept):
            for b, j in enumerate(kept):
                distance = math.hypot(i // GRID - j // GRID, i % GRID - j % GRID)
                for head in range(HEADS):
                    bias[head, NUM_EXTRA + a, NUM_EXTRA + b] = -slopes(HEADS)[head] * distance
        scale = self.w["frontends.image.alibi_scale"].clamp(min=0)[:, 0]
        x = self.norm("frontends.image.norm", x)
        outputs = []
        for layer, name in enumerate(["frontends.image.blocks.0", "encoder.blocks.0", "encoder.blocks.1"]):
            x, _ = self.block(name, x, bias * scale[layer])
            outputs.append(x)
        return outputs[1:]

    def targets(self, num_samples: int) -> Tensor:
        rows = [self.encode(sample, list(range(TOKENS))) for sample in range(num_samples)]
        total = torch.zeros(num_samples, TOKENS, DIM, dtype=torch.float64)
        for layer in range(2):
            x = torch.stack([row[layer][NUM_EXTRA:] for row in rows])
            total += (x - x.mean((0, 1))) / (x.var((0, 1), correction=0) + 1e-5).sqrt()
        return standard(standard(total / 2, -1), 1)

    def decode_grid(self, full: Tensor) -> Tensor:
        x = full.transpose(1, 2).unflatten(2, (GRID, GRID))
        for layer in range(2):
            name = f"decoders.image.layers.{layer}"
            y = functional.conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], padding=2, groups=4)
            y = functional.layer_norm(y[:, :, :GRID, :GRID].movedim(1, 3), (32,)).movedim(3, 1)
            x = functional.gelu(y) + (x if layer else 0)
        return self.linear("decoders.image.projection", x.flatten(2).transpose(1, 2))


def test_every_option_together() -> None:
    student = shaken(CONFIG)
    generator = torch.Generator().manual_seed(2)
    source = torch.randn(2, 3, GRID * PATCH, GRID * PATCH, generator=generator, dtype=torch.float64)
    masks = block_masks_2d(6, GRID, CONFIG.image.mask, generator)
    views = split_views(masks.view(2, NUM_VIEWS, -1), CONFIG.image.num_kept)
    noise = 0.01 * torch.randn(*views.removed.shape, DIM, generator=generator, dtype=torch.float64)
    out = student(source, views, noise, modality="image")
    targets = student.targets(source, modality="image").targets
    plain = PlainImages({name: value.detach() for name, value in student.state_dict().items()}, source)
    expected = plain.targets(2)
    torch.testing.assert_close(targets.double(), expected, rtol=0, atol=2e-6)
    full = torch.zeros(6, TOKENS, DIM, dtype=torch.float64)
    encoded = []
    for row in range(6):
        kept, removed = views.kept[row].tolist(), views.removed[row].tolist()
        x = plain.encode(row // NUM_VIEWS, kept)[-1]
        full[row, kept], full[row, removed] = x[NUM_EXTRA:], noise[row] + plain.positions[removed]
        encoded.append(x)
    torch.testing.assert_close(out.encoded, torch.stack(encoded), rtol=0, atol=1e-7)
    predicted = plain.decode_grid(full)[masks]
    torch.testing.assert_close(out.prediction.flatten(0, 1), predicted, rtol=0, atol=1e-7)
    terms = objective(CONFIG.image, out, targets, source)
    repeated = expected.repeat_interleave(NUM_VIEWS, dim=0)
    cls = torch.stack(encoded)[:, NUM_EXTRA - 1]
    patches = source.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # B C h w p q
    pixels = patches.permute(0, 2, 3, 4, 5, 1).reshape(2, TOKENS, -1)
    pixels = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
    rebuilt, wanted = plain.linear("reconstruction", predicted), pixels.repeat_interleave(NUM_VIEWS, dim=0)[masks]
    assert terms["regression"].sum.item() == pytest.approx(smooth_l1(predicted, repeated[masks], BETA, SCALE), rel=1e-6)
    assert terms["cls"].sum.item() == pytest.approx(smooth_l1(cls, repeated.mean(1), BETA, SCALE), rel=1e-6)
    assert terms["reconstruction"].sum.item() == pytest.approx(smooth_l1(rebuilt, wanted, BETA, SCALE), rel=1e-6)
