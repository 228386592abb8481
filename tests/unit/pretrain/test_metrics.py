"""Meters and spreads against direct computation."""

import pytest
import torch
import torch.distributed as dist

from pretrain.observe.metrics import LossMeter, SpreadMeter


def test_spread_is_the_references_variance_metric(group: dist.ProcessGroup) -> None:
    """fairseq ``compute_var``: mean over channels of sqrt(unbiased variance + 1e-6)."""
    x = torch.randn(6, 35, 16, generator=torch.Generator().manual_seed(0)) * torch.arange(16) + 100
    meter = SpreadMeter()
    for part in x.split(2):  # three microbatches
        meter.add("x", part)
        meter.add("y", torch.zeros_like(part))
    seen = meter.read(group)
    expected = (x.double().reshape(-1, 16).var(dim=0) + 1e-6).sqrt().mean().item()
    assert seen["x"] == pytest.approx(expected, rel=1e-9)
    assert seen["y"] == pytest.approx(1e-3)


def test_meter_averages_over_steps_and_empties(group: dist.ProcessGroup) -> None:
    meter = LossMeter(torch.device("cpu"))
    for value in (1.0, 2.0, 6.0):
        meter.add("regression", torch.tensor(value / 2))
        meter.add("regression", torch.tensor(value / 2))  # two microbatches
        meter.add("cls", torch.tensor(0.5))
        meter.end_step()
    assert meter.read(group) == {"cls": pytest.approx(0.5), "regression": pytest.approx(3.0)}
    meter.add("regression", torch.tensor(7.0))
    meter.end_step()
    assert meter.read(group) == {"regression": pytest.approx(7.0)}
    meter.add("regression", torch.tensor(float("nan")))
    meter.end_step(counted=False)
    meter.add("regression", torch.tensor(3.0))
    meter.end_step()
    assert meter.read(group) == {"regression": pytest.approx(3.0)}
