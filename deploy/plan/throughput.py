"""Seconds of one step by what takes them: a model with few constants, all of them in ``hardware``. No torch.

Arithmetic at a share of the device's peak, elementwise work by the bytes it moves, collectives by ring algorithms, and
the bubble of a pipeline. What can hide behind something else counts only as far as it is longer.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deploy.plan.engine import Engine
from deploy.plan.hardware import Cluster, Device
from deploy.plan.kept import Parts
from deploy.plan.memory import StateBytes
from deploy.plan.shapes import Microbatch
from deploy.plan.traffic import Collective, traffic_per_step
from deploy.plan.traffic import group_size as size_of
from model.accounting import Flops, student_flops_by_part, teacher_flops_by_part
from model.config import ModelConfig
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid

TOUCHES = 4
"""Times that what the backward pass keeps is moved between memory and device: written, read, and its gradient too."""


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of one step of the slowest rank."""

    student: float
    """Forward, backward, recomputed blocks."""
    teacher: float
    """Its forward pass."""
    bubble: float
    """Stages that wait for others."""
    tensor_parallel: float
    """Sums over the ranks that share a model."""
    data_parallel: float
    """Gradients, weights and the teacher's average, as far as they do not hide."""
    pipeline: float
    """Hidden states between stages."""
    optimizer: float
    """Update of weights, moments and average."""
    fixed: float
    """What does not depend on the batch."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(vars(self).values())


def step_seconds(
    config: RunConfig,
    grid: Grid,
    cluster: Cluster,
    engine: Engine,
    stages: Sequence[range],
    states: Sequence[tuple[StateBytes, StateBytes]],
    of_each: Sequence[tuple[Microbatch, Parts]],
) -> StepSeconds:
    """One step of a run.

    Args:
        config: the run.
        grid: its layout, from ``make_grid``.
        cluster: what it runs on.
        engine: DeepSpeed's settings.
        stages: shared blocks of each.
        states: of every stage, on its devices and on their hosts.
        of_each: every modality's microbatch, and what it takes.
    """
    device = cluster.device
    kinds = {(len(blocks), blocks.start == 0, blocks.stop == config.model.encoder.depth) for blocks in stages}
    student = teaching = 0.0
    for one, held in of_each:
        passes = [_passes(config, grid, device, one, held, *kind) for kind in kinds]
        student += one.number * max(of.student for of in passes)
        teaching += one.number * max(of.teacher for of in passes)
    busiest = max(range(len(stages)), key=lambda stage: states[stage][0].total)
    comm = Links(cluster, grid, traffic_per_step(config, grid, busiest, engine))
    sums = comm.seconds(group="tp")
    average = (student + teaching + sums) / sum(one.number for one, _ in of_each)
    return StepSeconds(
        student=student,
        teacher=teaching,
        bubble=(grid.pp_size - 1) * average,
        tensor_parallel=sums,
        data_parallel=_data_parallel(config, comm, student, teaching),
        pipeline=comm.seconds(group="pp"),
        optimizer=_optimizer(device, *states[busiest]),
        fixed=device.step_wait,
    )


@dataclass(frozen=True)
class _Passes:
    """Seconds of one microbatch in one stage."""

    student: float
    teacher: float


def _passes(
    config: RunConfig,
    grid: Grid,
    device: Device,
    one: Microbatch,
    held: Parts,
    num_shared: int,
    is_first: bool,
    is_last: bool,
) -> _Passes:
    num_blocks = num_shared + (config.model.modalities[one.modality].prenet_depth if is_first else 0)
    student, teaching = _flops_of(config.model, one.modality, one.length)
    per_flop = one.samples / (device.peak(config.precision.dtype) * device.matmul_share)
    per_byte = 1 / (device.memory_gb_per_s * 1e9 * device.memory_share)
    again = 4 / 3 if config.parallel.recompute else 1
    kept = again * num_blocks * held.block + held.frontend * is_first + (held.decoder + held.loss) * is_last
    wait = device.block_wait + (device.hook_wait if config.parallel.zero_stage == 3 else 0)
    waits = again * num_blocks * wait + device.microbatch_wait / grid.pp_size
    hooks = device.hook_wait / 2 if config.parallel.gathers_teacher else 0

    def flops(parts: Flops, again: float) -> float:
        """Of one sample; tensor-parallel ranks share blocks by heads and units, frontends and decoders by rows."""
        ends = parts.first * is_first + parts.last * is_last
        return (again * num_shared * parts.block + ends) / grid.tp_size

    return _Passes(
        per_flop * flops(student, again) + per_byte * TOUCHES * kept + waits,
        per_flop * flops(teaching, 1) + per_byte * 2 * num_blocks * held.teacher + num_blocks * (wait / 4 + hooks),
    )


@functools.cache
def _flops_of(model: ModelConfig, modality: str, length: int) -> tuple[Flops, Flops]:
    """Student's and teacher's, of one sample."""
    return student_flops_by_part(model, modality, length), teacher_flops_by_part(model, modality, length)


def _data_parallel(config: RunConfig, comm: "Links", student: float, teaching: float) -> float:
    """Stage 3 fetches weights ahead and reduces gradients beside the backward pass; a gathered teacher fetches ahead;
    a resident one's average travels while the next step's student runs forward.
    """
    exposed = comm.seconds(group="dp", when="step")
    during = comm.seconds(group="dp", when="forward") + comm.seconds(group="dp", when="backward")
    exposed += max(0.0, during - student) if config.parallel.zero_stage == 3 else during
    exposed += max(0.0, comm.seconds(group="dp", when="teacher") - teaching)
    return exposed + max(0.0, comm.seconds(group="dp", when="refresh") - student / 3)


def _optimizer(device: Device, held: StateBytes, away: StateBytes) -> float:
    """AdamW reads gradient, weight and moments and writes all but the first; the average reads and writes."""
    seconds = 2 * (held.optimizer + held.teacher_shard) / (device.memory_gb_per_s * 1e9 * device.memory_share)
    moved = 2 * (away.optimizer + away.teacher_shard)  # by the host's own memory, then both ways over its link
    return seconds + moved / (device.host_gb_per_s * 1e9)


@dataclass(frozen=True)
class Links:
    """Seconds of collectives."""

    cluster: Cluster
    grid: Grid
    collectives: tuple[Collective, ...]

    def seconds(self, *, group: str, when: str | None = None) -> float:
        """Of one group's collectives, all or those of one part of the step."""
        return sum(self._of(one) for one in self.collectives if one.group == group and when in (None, one.when))

    def _of(self, one: Collective) -> float:
        device, size = self.cluster.device, size_of(self.grid, one.group)
        inside = self._ranks_of_a_machine(one.group)
        speed, wait = device.link_gb_per_s * 1e9, device.link_wait
        if inside < size:  # a ring passes through every machine with as many network ports as it has ranks there
            ports = device.network_gbit_per_s / 8 * 1e9 * (1 if one.group == "pp" else inside)
            depth = 1 if one.group == "pp" else math.log2(2 * size / inside)  # of a tree of machines
            speed, wait = min(speed, ports), device.network_wait * depth
        return one.wire_bytes(size) / (speed * device.link_share) + one.count * wait

    def _ranks_of_a_machine(self, group: str) -> int:
        """How few ranks of one group share a machine: tensor-parallel ranks are neighbours, stages far apart.

        Machines begin at every multiple of ``per_node``, groups at every multiple of their span of ranks: where
        neither divides the other, some group leaves only the greatest common divisor of both on a machine.
        """
        tp_size, dp_size, per_node = self.grid.tp_size, self.grid.dp_size, self.cluster.per_node
        if group == "tp":
            return math.gcd(tp_size, per_node)
        if group == "dp":
            return max(1, math.gcd(tp_size * dp_size, per_node) // tp_size)
        return max(1, min(self.grid.pp_size, per_node // (tp_size * dp_size)))


def wire_bytes(collectives: Iterable[Collective], grid: Grid, group: str) -> float:
    """Bytes that leave one rank in a step."""
    return sum(one.wire_bytes(size_of(grid, one.group)) for one in collectives if one.group == group)
