"""Figures of an interval against a clock that the test moves."""

from types import SimpleNamespace

import pytest

from pretrain.observe import throughput
from pretrain.observe.throughput import Throughput


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.now)
    return clock


def test_amounts_are_counted_per_second(clock: SimpleNamespace) -> None:
    speed = Throughput(num_devices=4, max_steps=100)
    speed.start(wait_seconds=1.0)
    for amounts in ({"flops": 3e12, "samples": 8, "images": 8, "text_tokens": 0}, {"flops": 5e12, "samples": 2}):
        speed.end_step(amounts)
    clock.now += 4.0
    figures = speed.read(step=10, wait_seconds=2.0)
    assert figures.pop("memory_gib") > 0
    assert figures == {
        "samples_per_second": 2.5,
        "images_per_second": 2.0,  # what a run has none of is left out
        "tflops_per_second": 8 / 4 / 4,  # per device
        "data_wait_share": 0.25,
        "seconds_per_step": 2.0,
        "eta_seconds": 180.0,
    }


def test_reading_starts_the_next_interval(clock: SimpleNamespace) -> None:
    speed = Throughput(num_devices=1, max_steps=2)
    speed.start(wait_seconds=0.0)
    speed.end_step({"flops": 1e12, "samples": 100})
    clock.now += 1.0
    speed.read(step=1, wait_seconds=0.5)
    speed.end_step({"flops": 1e12, "samples": 1})
    clock.now += 2.0
    figures = speed.read(step=2, wait_seconds=0.5)
    assert (figures["samples_per_second"], figures["seconds_per_step"], figures["data_wait_share"]) == (0.5, 2.0, 0.0)
    assert figures["eta_seconds"] == 0.0
