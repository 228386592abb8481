"""The planner's activations against tensors that are alive, and against each other."""

import pytest

from deploy.plan.activations import activation_bytes
from pretrain.config import RunConfig, with_overrides
from pretrain.parallel.grid import Grid
from pretrain.recipes.registry import recipe
from tests.unit.deploy.plan.live import measure

PLACES = ("dropout", "attention_dropout", "post_mlp_dropout", "activation_dropout", "input_dropout")
DROPOUTS = [f"--model.encoder.{name}=0.1" for name in PLACES]
RECOMPUTE = ["--parallel.recompute=true"]
BATCH = {"image": 8, "audio": 1, "text": 4}


def config(modality: str, *overrides: str) -> RunConfig:
    size = f"--training.global-batch-size={BATCH[modality]}"
    return with_overrides(recipe(f"{modality}-tiny"), [size, *overrides])


@pytest.mark.parametrize("extra", [[], DROPOUTS, RECOMPUTE], ids=["plain", "dropouts", "recompute"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_what_a_process_holds(modality: str, dtype: str, extra: list[str]) -> None:
    """Kept by the student and by its decoder within 2 %, the peak within 5 %."""
    run = config(modality, f"--precision.dtype={dtype}", *extra)
    measured, (planned,) = measure(run), activation_bytes(run, Grid(1, 1), on_cpu=True)
    assert planned.peak == pytest.approx(measured.peak, rel=0.05)
    assert planned.decoder == pytest.approx(measured.decoder, rel=0.03)
    if not run.parallel.recompute:
        assert planned.student + planned.decoder == pytest.approx(measured.kept, rel=0.02)
