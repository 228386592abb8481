"""All layouts of a recipe on a cluster: which are legal, what each takes, which is best. No torch."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from deploy.plan.activations import activations_of
from deploy.plan.hardware import Cluster
from deploy.plan.kept import Network, parts
from deploy.plan.memory import host_bytes, state_bytes
from deploy.plan.plan import Each, Plan, State
from deploy.plan.problem import Problem, Refusal, Refusals
from deploy.plan.shapes import microbatches
from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.parallel.grid import Grid, make_grid
from pretrain.request import lay_out
from pretrain.sections import ParallelSection
from pretrain.work import stages_of_run

ZERO_STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class Search:
    """What a search found."""

    plans: list[Plan]
    """Legal layouts that fit, fastest first."""
    too_large: list[Plan]
    """Legal layouts that do not fit, the smallest first."""
    refusals: list[Refusal]


def search(problem: Problem) -> Search:
    """Every layout.

    Tensor-parallel sizes end at the devices of one machine: beyond, each of four sums per block waits for the network.
    """
    refusals = Refusals()
    plans = [plan for section in _sections(problem, refusals) for plan in _plans(problem, section, refusals)]
    fitting = sorted((plan for plan in plans if plan.fits), key=_preference)
    too_large = sorted((plan for plan in plans if not plan.fits), key=lambda plan: plan.memory_bytes)
    return Search(fitting, too_large, refusals.all())


def plan_of(problem: Problem) -> Plan:
    """What the configuration's own layout takes.

    Raises:
        RunError: if it is not legal.
    """
    config, cluster = problem.config, problem.cluster
    grid, _ = lay_out(config, cluster.size, problem.user)
    return _plan(problem, config, grid, _states(problem, config, grid), _each(config, grid, cluster))


def _preference(plan: Plan) -> tuple[float, ...]:
    """Faster first; of equally fast ones (to 0.1 %) that with fewer cuts and options, then that with more room."""
    section = plan.config.parallel
    options = section.offload != "none", section.recompute, section.teacher == "gathered"
    simplicity = section.tp_size * section.pp_size, section.zero_stage, *options
    return (float(f"{plan.seconds.total:.3e}"), *map(float, simplicity), -plan.spare_bytes)


def _degrees(problem: Problem, refusals: Refusals) -> Iterator[tuple[int, int]]:
    """Legal sizes; a size that is not is refused once, whatever goes with it."""
    config, world_size = problem.config, problem.cluster.size
    of_tensors: Iterable[int] = range(1, problem.cluster.per_node + 1)
    of_stages: Iterable[int] = range(1, config.model.encoder.depth + 1)
    if "tp_size" in problem.pinned:
        of_tensors = [config.parallel.tp_size]
    if "pp_size" in problem.pinned:
        of_stages = [config.parallel.pp_size]

    def is_legal(tp_size: int, pp_size: int) -> bool:
        section = ParallelSection(tp_size=tp_size, pp_size=pp_size)
        try:
            make_grid(section, config.model, world_size)
        except RunError as error:
            refusals.add(section, error)
            return False
        return True

    for tp_size in of_tensors:
        if is_legal(tp_size, 1):
            fitting = [size for size in of_stages if tp_size * size <= world_size or "pp_size" in problem.pinned]
            yield from ((tp_size, size) for size in fitting if size == 1 or is_legal(tp_size, size))


def _sections(problem: Problem, refusals: Refusals) -> Iterator[ParallelSection]:
    """Legal degrees and stages, of what saves memory only what is pinned."""
    config = problem.config
    plain = {"sequence_parallel": False, "teacher": "resident", "offload": "none", "recompute": False}
    options: dict[str, Any] = {name: value for name, value in plain.items() if name not in problem.pinned}
    for tp_size, pp_size in _degrees(problem, refusals):
        for zero_stage in ZERO_STAGES:
            if "zero_stage" in problem.pinned and zero_stage != config.parallel.zero_stage:
                continue
            degrees: dict[str, Any] = {"tp_size": tp_size, "pp_size": pp_size, "zero_stage": zero_stage}
            try:
                section = dataclasses.replace(config.parallel, **(degrees | options))
                make_grid(section, config.model, problem.cluster.size)
            except RunError as error:
                refusals.add(ParallelSection(**degrees), error)
            else:
                yield section


def _plans(problem: Problem, section: ParallelSection, refusals: Refusals) -> Iterator[Plan]:
    """Every microbatch size of a layout, until one does not fit; what trades time for memory where it does not fit
    without.
    """
    config = problem.config
    grid = make_grid(section, config.model, problem.cluster.size)
    try:
        sizes = _microbatch_sizes(problem, grid)
    except RunError as error:
        refusals.add(section, error)
        return
    states: dict[ParallelSection, list[State]] = {}
    for size in sizes:
        known: dict[bool, Each] = {}
        tried = 0
        for options in _savings(problem, section, refusals):
            runs = [_with(config, one, size) for one in options]
            plans = [_of(problem, run, grid, states, known) for run in runs if _is_legal(problem, run, refusals)]
            tried += len(plans)
            yield from plans
            if any(plan.fits for plan in plans):
                break
        else:
            if tried:  # no larger one will fit
                return


def _savings(problem: Problem, section: ParallelSection, refusals: Refusals) -> Iterator[list[ParallelSection]]:
    """The layout as it is, where the model is cut by tensors with split rows too, which costs hardly anything; then
    with recomputation or a gathered teacher; then with the optimizer on the host.
    """

    def having(sections: list[ParallelSection], name: str, value: Any) -> list[ParallelSection]:
        """Those that may have an option, with it; none if the option is pinned, which they have then."""
        changed = []
        for one in sections if name not in problem.pinned else ():
            try:
                changed.append(dataclasses.replace(one, **{name: value}))
            except RunError as error:
                refusals.add(one, error)
        return changed

    plain = [section, *(having([section], "sequence_parallel", True) if section.tp_size > 1 else [])]
    saving = having(plain, "recompute", True)
    saving += having([*plain, *saving], "teacher", "gathered")
    away = having([*plain, *saving], "offload", "optimizer") if section.zero_stage > 0 else []
    yield from (options for options in (plain, saving, away) if options)


def _with(config: RunConfig, section: ParallelSection, size: int | None) -> RunConfig:
    training = dataclasses.replace(config.training, microbatch_size=size)
    return dataclasses.replace(config, parallel=section, training=training)


def _is_legal(problem: Problem, run: RunConfig, refusals: Refusals) -> bool:
    """Whether ``d2v train`` would start the run with the user's JSON."""
    try:
        lay_out(run, problem.cluster.size, problem.user)
    except RunError as error:
        refusals.add(run.parallel, error, run.training.microbatch_size)
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
    return Plan(config, grid, problem.cluster, problem.engine, states, activations, each)


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


def _microbatch_sizes(problem: Problem, grid: Grid) -> list[int | None]:
    """Of what divides a rank's share the nearest below each power of 2, the whole share, and what is asked for:
    those between differ little. A recipe whose modalities have sizes of their own keeps those.

    Raises:
        RunError: if the batch does not divide.
    """
    config = problem.config
    free = dataclasses.replace(config, training=dataclasses.replace(config.training, microbatch_size=None))
    shares = [size * number for size, number in (free.microbatches(name, grid.dp_size) for name in config.data.sources)]
    if len(shares) > 1:
        return [config.training.microbatch_size]
    share = shares[0]
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    powers = [2**exponent for exponent in range(share.bit_length())]
    asked: set[Any] = {config.training.microbatch_size, problem.user.get("train_micro_batch_size_per_gpu")}
    return sorted(
        {share, *asked.intersection(divisors), *(max(size for size in divisors if size <= power) for power in powers)}
    )
