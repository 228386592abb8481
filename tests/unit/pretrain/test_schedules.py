"""Learning rate and optimizer arithmetic against values computed with the reference (shared/golden/optim.json)."""

import pytest
import torch

from pretrain import schedules
from pretrain.recipes.registry import recipe
from pretrain.sections import OptimSection
from tests.golden.tables import optim_table

CONFIGS = {"base_images_only_task": "image-base", "large_images_only_task": "image-large"} | {
    "huge_images14_only_task": "image-huge14"
}


@pytest.mark.parametrize("config", CONFIGS)
def test_cosine_lr_equals_reference(config: str) -> None:
    run = recipe(CONFIGS[config])
    for step, expected in optim_table()["cosine_lr"][config].items():
        lr = schedules.cosine_lr(
            int(step),
            peak=run.optim.lr,
            warmup_steps=run.schedule.warmup_steps,
            max_steps=run.training.max_steps,
        )
        assert lr == pytest.approx(expected, rel=1e-9, abs=1e-20), step


def adamw_steps(scale: float, section: OptimSection) -> list[torch.Tensor]:
    table = optim_table()["adam"]
    parameter = torch.tensor(table["p0"], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([parameter], lr=section.lr, betas=section.betas, weight_decay=section.weight_decay)
    seen = []
    for step, gradient in enumerate(table["grads"]):
        optimizer.param_groups[0]["eps"] = schedules.uncorrected_eps(step, eps=section.eps, beta2=section.betas[1])
        parameter.grad = torch.tensor(gradient, dtype=torch.float64) * scale
        optimizer.step()
        seen.append(parameter.detach().clone())
    return seen


@pytest.mark.parametrize(("name", "key", "atol"), [("image-base", "image", 2e-7), ("audio-base", "audio_text", 8e-7)])
def test_adamw_equals_reference_steps(name: str, key: str, atol: float) -> None:
    """At the recipes' peak rates. The reference rounds to fp32 twice a step, weights near 2.2 by up to 1.2e-7."""
    steps = optim_table()["adam"]["steps"][key]
    for seen, expected in zip(adamw_steps(1.0, recipe(name).optim), steps, strict=True):
        torch.testing.assert_close(seen, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def test_eps_counts_before_bias_correction_for_tiny_gradients() -> None:
    """Gradients near eps tell fairseq's formula from torch's; the reference formula is written out here."""
    eps, (beta1, beta2), lr, decay, scale = 1e-8, (0.9, 0.95), 1e-3, 0.05, 1e-8
    section = OptimSection(lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    table = optim_table()["adam"]
    weight = torch.tensor(table["p0"], dtype=torch.float64)
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for t, (gradient, seen) in enumerate(zip(table["grads"], adamw_steps(scale, section), strict=True), start=1):
        g = torch.tensor(gradient, dtype=torch.float64) * scale
        first, second = beta1 * first + (1 - beta1) * g, beta2 * second + (1 - beta2) * g * g
        weight = weight * (1 - lr * decay)
        weight = weight - lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t) * first / (second.sqrt() + eps)
        torch.testing.assert_close(seen, weight, rtol=1e-12, atol=0)
