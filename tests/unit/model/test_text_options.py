"""Options of text that the committed golden does not show, against the second implementation of ``plain``.

A prenet (and with it an input norm), padding, an even decoder kernel, K below the depth; a teacher with the shared
blocks alone, in other weights, that reads the student's context of the whole sample. Learned positions, no residual and
the projection of two linears are the recipes'.
"""

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig, TextConfig
from model.losses import objective
from model.masking import random_masks, split_views
from model.sections import DecoderConfig, EncoderConfig, LossConfig, MaskConfig, TargetConfig
from tests.unit.model.inputs import another_teacher, shaken
from tests.unit.model.plain import Plain, standard

DIM, HEADS, DEPTH, TOP_K, NUM_VIEWS, SCALE = 24, 4, 3, 2, 3, 0.8
NUM_TOKENS, VALID, PADDING = 15, (11, 15), 1
CONFIG = ModelConfig(
    encoder=EncoderConfig(depth=DEPTH, dim=DIM, num_heads=HEADS, norm_eps=1e-5),
    text=TextConfig(
        num_views=NUM_VIEWS,
        vocab_size=40,
        max_positions=20,
        prenet_depth=1,
        teacher_scope="encoder",
        mask=MaskConfig(kind="random", prob=0.45, length=1),
        decoder=DecoderConfig(dim=16, groups=1, kernel=4, num_layers=3, residual=False, projection_layers=2),
        target=TargetConfig(top_k=TOP_K, instance_norm_layer=True),
        loss=LossConfig(scale=SCALE),
    ),
)


class PlainText(Plain):
    """Embedding, encoder."""

    def tokens(self, numbers: list[int]) -> Tensor:
        """Token numbers -> (T, D), one after the other; the first that is no padding has position 2."""
        words, positions = (self.w[f"frontends.text.local.{name}.weight"] for name in ("tokens", "positions"))
        rows, count = [], 0
        for number in numbers:
            count += number != PADDING
            rows.append(words[number] + positions[1 + count if number != PADDING else 1])
        return self.norm("frontends.text.local.norm", torch.stack(rows), 1e-5)

    def context(self, tokens: Tensor, num_valid: int, kept: list[int]) -> tuple[Tensor, Tensor]:
        """Input of the shared blocks for one sample that keeps some tokens, and its attention bias."""
        bias = torch.zeros(HEADS, len(kept), len(kept), dtype=torch.float64)
        for b, j in enumerate(kept):
            if j >= num_valid:
                bias[:, :, b] = -torch.inf
        x, _ = self.block("frontends.text.blocks.0", self.norm("frontends.text.norm", tokens[kept]), bias)
        return x, bias

    def encode(self, x: Tensor, bias: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Outputs and MLP outputs of the shared blocks."""
        outputs = []
        for layer in range(DEPTH):
            x, inner = self.block(f"encoder.blocks.{layer}", x, bias)
            outputs.append((x, inner))
        return outputs


def test_every_option_together() -> None:
    student, teacher = shaken(CONFIG), another_teacher(CONFIG)
    generator = torch.Generator().manual_seed(2)
    source = torch.randint(4, 40, (2, NUM_TOKENS), generator=generator)
    source[0, VALID[0] :] = PADDING
    masks = random_masks(2 * NUM_VIEWS, NUM_TOKENS, CONFIG.text.mask, generator)
    views = split_views(masks.view(2, NUM_VIEWS, -1), NUM_TOKENS - CONFIG.text.mask.num_removed(NUM_TOKENS))
    noise = 0.01 * torch.randn(*views.removed.shape, DIM, generator=generator, dtype=torch.float64)
    padding = source == PADDING
    out = student(source, views, noise, modality="text", padding=padding)
    targets = teacher.targets(source, out, modality="text", padding=padding).targets

    plain, other = (
        PlainText({name: value.detach() for name, value in model.state_dict().items()}, HEADS, eps=1e-5)
        for model in (student, teacher)
    )
    tokens = [plain.tokens(numbers) for numbers in source.tolist()]
    goals = []
    for sample in range(2):
        whole = plain.context(tokens[sample], VALID[sample], list(range(NUM_TOKENS)))  # the student's
        layers = [inner for _, inner in other.encode(*whole)][-TOP_K:]
        goals.append(sum(standard(layer, 0) for layer in layers) / TOP_K)
    torch.testing.assert_close(targets.double(), torch.stack(goals), rtol=0, atol=5e-6)
    total, full = 0.0, torch.zeros(NUM_TOKENS, DIM, dtype=torch.float64)
    for row, mask in enumerate(masks):
        sample = row // NUM_VIEWS
        kept = [token for token in range(NUM_TOKENS) if not mask[token]]
        encoded = plain.encode(*plain.context(tokens[sample], VALID[sample], kept))[-1][0]
        torch.testing.assert_close(out.encoded[row], encoded, rtol=0, atol=1e-12)
        full[~mask], full[mask] = encoded, noise[row]
        predicted = plain.decode("text", full, num_layers=3, groups=1, residual=False)[mask]
        torch.testing.assert_close(out.prediction[row], predicted, rtol=0, atol=1e-12)
        total += SCALE * (predicted - goals[sample][mask]).square().sum().item()
    terms = objective(CONFIG.text, out, targets, source)
    assert terms["regression"].sum.item() == pytest.approx(total, rel=1e-6)
    assert terms["regression"].count == masks.sum()


def test_the_teachers_context_gets_no_gradient() -> None:
    """It reads the student's tokens and prenet as they are; only the views train them."""
    student = shaken(CONFIG)
    source = torch.full((1, 6), 7)
    masks = torch.zeros(1, NUM_VIEWS, 6, dtype=torch.bool)
    masks[:, :, 4:] = True
    views = split_views(masks, 4)
    out = student(source, views, torch.zeros(NUM_VIEWS, 2, DIM, dtype=torch.float64), modality="text")
    assert out.context is not None
    assert not out.context.x.requires_grad
    assert out.prediction.requires_grad
