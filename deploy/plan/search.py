"""All layouts of a recipe on a cluster: which are legal, what each takes, which is best. No torch."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from deploy.plan.activations import ActivationBytes, activations_of
from deploy.plan.engine import Engine
from deploy.plan.hardware import Cluster
from deploy.plan.kept import Network, Parts, parts
from deploy.plan.memory import StateBytes, host_bytes, state_bytes
from deploy.plan.shapes import Microbatch, microbatches
from deploy.plan.throughput import StepSeconds, step_seconds
from model.accounting import train_flops_per_sample
from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.parallel.deepspeed_config import deepspeed_config
from pretrain.parallel.grid import Grid, make_grid
from pretrain.sections import ParallelSection
from pretrain.work import check_rows, stages_of_run

ZERO_STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
DEGREES = ("tp_size", "pp_size", "zero_stage")
SAVINGS = ("teacher", "offload", "recompute", "sequence_parallel")
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
    states: list[State]
    """By stage."""
    activations: list[ActivationBytes]
    """By stage."""
    seconds: StepSeconds

    @cached_property
    def fullest(self) -> int:
        """The stage whose ranks hold most."""
        return max(range(self.grid.pp_size), key=self._bytes_of)

    @property
    def memory_bytes(self) -> int:
        """Most that a rank holds on its device."""
        return self._bytes_of(self.fullest)

    @property
    def spare_bytes(self) -> int:
        """What is left of the device's usable memory; negative if it does not fit."""
        device = self.cluster.device
        return int(device.memory_gb * 1e9 * device.usable_share) - self.memory_bytes

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
        return self.states[stage][0].total + self.activations[stage].peak


@dataclass(frozen=True)
class Refusal:
    """A layout that is not legal."""

    section: ParallelSection
    reason: str
    microbatch_size: int | None = None
    """Given where it matters."""


@dataclass(frozen=True)
class Search:
    """What a search found."""

    plans: list[Plan]
    """Legal layouts that fit, fastest first."""
    too_large: list[Plan]
    """Legal layouts that do not fit, the smallest first."""
    refusals: list[Refusal]


@dataclass(frozen=True)
class Problem:
    """What is looked for."""

    config: RunConfig
    """The recipe; its own layout does not matter but for ``pinned``."""
    cluster: Cluster
    """Where it shall run."""
    engine: Engine = field(default_factory=Engine)
    """DeepSpeed's settings."""
    pinned: frozenset[str] = frozenset()
    """Fields of ``config.parallel`` that every layout has to keep."""

    def allows(self, section: ParallelSection, fields: Sequence[str]) -> bool:
        """Whether a layout keeps those of ``fields`` that are pinned."""
        kept = self.pinned.intersection(fields)
        return all(getattr(section, name) == getattr(self.config.parallel, name) for name in kept)


def search(problem: Problem) -> Search:
    """Every layout.

    Tensor-parallel sizes end at the devices of one machine: beyond, each of four sums per block waits for the network.
    """
    refusals: list[Refusal] = []
    plans = [plan for section in _sections(problem, refusals) for plan in _plans(problem, section, refusals)]
    fitting = sorted((plan for plan in plans if plan.spare_bytes >= 0), key=_preference)
    too_large = sorted((plan for plan in plans if plan.spare_bytes < 0), key=lambda plan: plan.memory_bytes)
    return Search(fitting, too_large, refusals)


def plan_of(problem: Problem) -> Plan:
    """What the configuration's own layout takes.

    Raises:
        RunError: if it is not legal.
    """
    config, cluster = problem.config, problem.cluster
    grid = make_grid(config.parallel, config.model, cluster.size)
    check_rows(config, grid)
    return _plan(problem, config, grid, _states(problem, config, grid), _each(config, grid, cluster))


def _preference(plan: Plan) -> tuple[float, ...]:
    """Faster first; of equally fast ones (to 0.1 %) that with fewer cuts and options, then that with more room."""
    section = plan.config.parallel
    options = section.offload != "none", section.recompute, section.teacher == "gathered"
    simplicity = section.tp_size * section.pp_size, section.zero_stage, *options
    return (float(f"{plan.seconds.total:.3e}"), *map(float, simplicity), -plan.spare_bytes)


def _sections(problem: Problem, refusals: list[Refusal]) -> Iterator[ParallelSection]:
    """Legal degrees and stages, without what saves memory."""
    config, cluster = problem.config, problem.cluster
    sizes = itertools.product(range(1, cluster.per_node + 1), range(1, config.model.encoder.depth + 1))
    for tp_size, pp_size in sizes:
        if tp_size * pp_size > cluster.size:
            continue
        plain = dataclasses.replace(
            config.parallel,
            tp_size=tp_size,
            pp_size=pp_size,
            sequence_parallel=False,
            teacher="resident",
            offload="none",
            recompute=False,
        )
        for zero_stage in ZERO_STAGES:
            try:
                section = dataclasses.replace(plain, zero_stage=zero_stage)
            except RunError as error:  # of another option that the configuration sets
                refusals.append(Refusal(plain, str(error)))
                continue
            if not problem.allows(section, DEGREES):
                continue
            try:
                make_grid(section, config.model, cluster.size)
            except RunError as error:
                refusals.append(Refusal(section, str(error)))
            else:
                yield section


def _plans(problem: Problem, section: ParallelSection, refusals: list[Refusal]) -> Iterator[Plan]:
    """Every microbatch size of a layout; what trades time for memory where it does not fit without."""
    config = problem.config
    grid = make_grid(section, config.model, problem.cluster.size)
    try:
        sizes = _microbatch_sizes(dataclasses.replace(config, parallel=section), grid)
    except RunError as error:
        refusals.append(Refusal(section, str(error)))
        return
    states: dict[ParallelSection, list[State]] = {}
    for size in sizes:
        known: dict[bool, Each] = {}
        for options in _savings(problem, section, refusals):
            runs = [_with(config, one, size) for one in options]
            plans = [_of(problem, run, grid, states, known) for run in runs if _splits(run, grid, refusals)]
            yield from plans
            if any(plan.spare_bytes >= 0 for plan in plans):
                break


def _savings(problem: Problem, section: ParallelSection, refusals: list[Refusal]) -> Iterator[list[ParallelSection]]:
    """The layout as it is, where the model is cut by tensors with split rows too, which costs hardly anything; then
    with recomputation or a gathered teacher; then with the optimizer on the host.
    """

    def having(sections: list[ParallelSection], **fields: Any) -> list[ParallelSection]:
        """Those that may have an option, with it."""
        changed = []
        for one in sections:
            try:
                changed.append(dataclasses.replace(one, **fields))
            except RunError as error:
                refusals.append(Refusal(one, str(error)))
        return changed

    plain = [section, *(having([section], sequence_parallel=True) if section.tp_size > 1 else [])]
    saving = having(plain, recompute=True)
    saving += having([*plain, *saving], teacher="gathered")
    away = having([*plain, *saving], offload="optimizer") if section.zero_stage > 0 else []
    if problem.pinned.intersection(SAVINGS):
        yield [one for one in [*plain, *saving, *away] if problem.allows(one, SAVINGS)]
    else:
        yield from (plain, saving, away)


def _with(config: RunConfig, section: ParallelSection, size: int | None) -> RunConfig:
    training = dataclasses.replace(config.training, microbatch_size=size)
    return dataclasses.replace(config, parallel=section, training=training)


def _splits(run: RunConfig, grid: Grid, refusals: list[Refusal]) -> bool:
    """Whether the rows of every microbatch can be split, if they have to be."""
    try:
        check_rows(run, grid)
    except RunError as error:
        refusals.append(Refusal(run.parallel, str(error), run.training.microbatch_size))
        return False
    return True


def _of(
    problem: Problem,
    run: RunConfig,
    grid: Grid,
    states: dict[ParallelSection, list[State]],
    known: dict[bool, Each],
) -> Plan:
    """One plan; ``states`` by section, and of this microbatch ``known``, spare what was computed before."""
    key, splits = dataclasses.replace(run.parallel, recompute=False), run.parallel.sequence_parallel
    if key not in states:
        states[key] = _states(problem, run, grid)
    if splits not in known:
        known[splits] = _each(run, grid, problem.cluster)
    return _plan(problem, run, grid, states[key], known[splits])


def _each(config: RunConfig, grid: Grid, cluster: Cluster) -> Each:
    network = Network(config, grid, cluster.device.is_cpu)
    return [(one, parts(network, one)) for one in microbatches(config, grid)]


def _plan(problem: Problem, config: RunConfig, grid: Grid, states: list[State], each: Each) -> Plan:
    stages = stages_of_run(config, pp_size=grid.pp_size)
    activations = activations_of(config, grid, each, stages)
    seconds = step_seconds(config, grid, problem.cluster, problem.engine, stages, states, each)
    return Plan(config, grid, problem.cluster, states, activations, seconds)


def _states(problem: Problem, config: RunConfig, grid: Grid) -> list[State]:
    """Of every stage: those between the first and the last are of few kinds."""
    kinds: dict[tuple[int, bool, bool], State] = {}
    found = []
    for stage, blocks in enumerate(stages_of_run(config, pp_size=grid.pp_size)):
        kind = len(blocks), stage == 0, stage == grid.pp_size - 1
        if kind not in kinds:
            kinds[kind] = state_bytes(config, grid, stage, problem.engine), host_bytes(config, grid, stage)
        found.append(kinds[kind])
    return found


def _microbatch_sizes(config: RunConfig, grid: Grid) -> list[int | None]:
    """What divides a rank's share; a recipe whose modalities have sizes of their own keeps those.

    Raises:
        RunError: if the batch does not divide, or DeepSpeed cannot do the layout.
    """
    deepspeed_config(config.optim, config.precision, config.parallel, microbatch_size=1, dp_size=grid.dp_size)
    free = dataclasses.replace(config, training=dataclasses.replace(config.training, microbatch_size=None))
    shares = [size * number for size, number in (free.microbatches(name, grid.dp_size) for name in config.data.sources)]
    if len(shares) > 1:
        return [config.training.microbatch_size]
    return [size for size in range(1, shares[0] + 1) if shares[0] % size == 0]
