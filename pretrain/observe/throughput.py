"""How fast a run goes, what it uses, and when it will end."""

import resource
import time

import torch


class Throughput:
    """Clock of a run, read once per log interval."""

    def __init__(self, *, num_devices: int, max_steps: int) -> None:
        """Args: devices that share a step, the run's length."""
        self._num_devices = num_devices
        self._max_steps = max_steps

    def start(self, wait_seconds: float) -> None:
        """Start the clock; ``wait_seconds`` is the time spent waiting for data so far."""
        self._since = time.perf_counter()
        self._wait_seconds = wait_seconds
        self._num_steps = 0
        self._amounts: dict[str, float] = {}

    def end_step(self, amounts: dict[str, float]) -> None:
        """Count one step and what all ranks together processed in it: ``flops`` (mask-aware), ``samples``, others."""
        self._num_steps += 1
        for name, amount in amounts.items():
            self._amounts[name] = self._amounts.get(name, 0.0) + amount

    def read(self, step: int, wait_seconds: float) -> dict[str, float]:
        """Figures of the interval that ends now at ``step``; starts the next one."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        per_step = seconds / max(self._num_steps, 1)
        flops = self._amounts.pop("flops", 0.0)
        figures = {
            **{f"{name}_per_second": amount / seconds for name, amount in self._amounts.items() if amount},
            "tflops_per_second": flops / seconds / self._num_devices / 1e12,
            "memory_gib": peak_memory_gib(),
            "data_wait_share": (wait_seconds - self._wait_seconds) / seconds,
            "seconds_per_step": per_step,
            "eta_seconds": (self._max_steps - step) * per_step,
        }
        self.start(wait_seconds)
        return figures


def peak_memory_gib() -> float:
    """Largest memory used so far: of the accelerator if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
