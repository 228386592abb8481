"""Meters and spreads against direct computation."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

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


class Largest(TorchDispatchMode):
    """Bytes of the largest memory that an operation inside gave its result."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
        for one in result if isinstance(result, tuple | list) else [result]:
            if one.untyped_storage().data_ptr() not in given:
                self.num_bytes = max(self.num_bytes, one.untyped_storage().nbytes())
        return result


def test_spread_of_a_large_tensor_takes_little_memory(group: dist.ProcessGroup) -> None:
    """It is measured while all activations are alive."""
    x = (torch.randn(7, 4099, 300, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()  # 16 MiB
    meter = SpreadMeter()
    with Largest() as largest:
        meter.add("x", x)
    assert 0 < largest.num_bytes <= 4 << 20
    expected = (x.double().reshape(-1, 300).var(dim=0) + 1e-6).sqrt().mean().item()
    assert meter.read(group)["x"] == pytest.approx(expected, rel=1e-9)


def test_a_rank_may_have_no_rows(group: dist.ProcessGroup) -> None:
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    meter = SpreadMeter()
    for part in (x[:0], x, x[3:]):
        meter.add("x", part)
    expected = (x.double().reshape(-1, 16).var(dim=0) + 1e-6).sqrt().mean().item()
    assert meter.read(group)["x"] == pytest.approx(expected, rel=1e-9)


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
