"""One legal layout: what it takes, how fast it is. No torch."""

from dataclasses import dataclass
from functools import cached_property

from deploy.plan.activations import ActivationBytes
from deploy.plan.engine import Engine
from deploy.plan.hardware import Cluster
from deploy.plan.kept import Parts
from deploy.plan.memory import StateBytes
from deploy.plan.shapes import Microbatch, microbatches
from deploy.plan.throughput import StepSeconds, step_seconds
from model.accounting import train_flops_per_sample
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid
from pretrain.work import stages_of_run

Each = list[tuple[Microbatch, Parts]]
"""Every modality's microbatch, and what it takes."""
State = tuple[StateBytes, StateBytes]
"""On the device and on its host."""


@dataclass(frozen=True)
class Plan:
    """One legal layout and what it takes."""

    config: RunConfig
    """The recipe with this layout and microbatch."""
    grid: Grid
    cluster: Cluster
    engine: Engine
    states: list[State]
    """By stage."""
    activations: list[ActivationBytes]
    """By stage."""
    each: Each
    """Of every modality."""

    @cached_property
    def seconds(self) -> StepSeconds:
        """Of a step; layouts that do not fit are not asked for it."""
        stages = stages_of_run(self.config, pp_size=self.grid.pp_size)
        return step_seconds(self.config, self.grid, self.cluster, self.engine, stages, self.states, self.each)

    @cached_property
    def fullest(self) -> int:
        """The stage whose ranks hold most."""
        return max(range(self.grid.pp_size), key=self._bytes_of)

    @cached_property
    def memory_bytes(self) -> int:
        """Most that a rank holds on its device."""
        return self._bytes_of(self.fullest)

    @property
    def spare_bytes(self) -> int:
        """What is left of the device's usable memory; negative if it does not fit."""
        device = self.cluster.device
        return int(device.memory_gb * 1e9 * device.usable_share) - self.memory_bytes

    @cached_property
    def host_bytes(self) -> int:
        """Most that the ranks of one machine hold in its own memory; 0 on processors, whose memory that is."""
        if self.cluster.device.is_cpu or self.config.parallel.offload == "none":
            return 0
        totals, each = [host.total for _, host in self.states], self.cluster.per_node
        machines = (range(first, first + each) for first in range(0, self.grid.world_size, each))
        return max(sum(totals[self.grid.pp_rank(rank)] for rank in machine) for machine in machines)

    @property
    def host_spare_bytes(self) -> int:
        """What is left of a machine's own usable memory; negative if it does not fit."""
        device = self.cluster.device
        return int(device.host_memory_gb * 1e9 * device.usable_share) - self.host_bytes

    @property
    def fits(self) -> bool:
        """Whether both memories are large enough."""
        return self.spare_bytes >= 0 and self.host_spare_bytes >= 0

    @property
    def samples_per_second(self) -> float:
        """Of all ranks."""
        return sum(one.samples * one.number for one in microbatches(self.config, self.grid)) * (
            self.grid.dp_size / self.seconds.total
        )

    @property
    def mfu(self) -> float:
        """Share of the devices' peak that the mask-aware FLOPs of a step are; recomputed ones do not count."""
        flops = sum(
            one.samples * one.number * train_flops_per_sample(self.config.model, one.modality, one.length)
            for one in microbatches(self.config, self.grid)
        )
        peak = self.cluster.size * self.cluster.device.peak(self.config.precision.dtype)
        return flops * self.grid.dp_size / (self.seconds.total * peak)

    @property
    def device_hours(self) -> float:
        """Of the whole recipe."""
        return self.config.training.max_steps * self.seconds.total * self.cluster.size / 3600

    def _bytes_of(self, stage: int) -> int:
        state, host = self.states[stage]
        away = host.total if self.cluster.device.is_cpu else 0  # the same memory
        return state.total + away + self.activations[stage].peak
