"""What a search means for its user: layouts worth showing, what goes with the recipe, what to heed. No torch."""

import dataclasses
from collections import Counter
from dataclasses import dataclass

from deploy.plan.plan import Plan
from deploy.plan.problem import Problem, Refusal
from deploy.plan.search import Search, plan_of, search
from pretrain.recipes.layouts import Layout


@dataclass(frozen=True)
class Advice:
    """Answers."""

    problem: Problem
    found: Search
    shown: list[Plan]
    """Of every layout that fits its best microbatch, fastest first."""
    own: Plan | None
    """The layout that goes with the recipe, on the cluster that it is meant for."""
    warnings: list[str]
    reasons: list[tuple[str, int]]
    """Why layouts are not legal, and how many."""


def advise(problem: Problem, layout: Layout | None = None) -> Advice:
    """Search and explain.

    Args:
        problem: what is looked for.
        layout: that goes with the recipe.
    """
    found = search(problem)
    return Advice(
        problem,
        found,
        _distinct(found.plans),
        _own(problem, layout),
        _warnings(problem, found),
        _reasons(found.refusals),
    )


def _distinct(plans: list[Plan]) -> list[Plan]:
    """The first of those that differ in nothing but the microbatch."""
    best: dict[object, Plan] = {}
    for plan in plans:
        best.setdefault(plan.config.parallel, plan)
    return list(best.values())


def _own(problem: Problem, layout: Layout | None) -> Plan | None:
    if layout is None or str(problem.cluster) != layout.cluster or problem.pinned:
        return None
    config = problem.config
    if problem.recipe.training.global_batch_size != config.training.global_batch_size:
        return None
    training = dataclasses.replace(config.training, microbatch_size=layout.microbatch_size)
    return plan_of(
        dataclasses.replace(problem, config=dataclasses.replace(config, parallel=layout.parallel, training=training))
    )


def _warnings(problem: Problem, found: Search) -> list[str]:
    """Where the recipe cannot be kept."""
    config, size = problem.config, problem.cluster.size
    said = []
    for name in config.model.modalities:
        batch, before = config.units_per_step(name), problem.recipe.units_per_step(name)
        if batch != before:
            said.append(
                f"the recipe's batch is {before:,} {name} units, not {batch:,}: its learning rate "
                f"{config.optim.lr:g}, warm-up and number of steps were chosen for that one"
            )
        if batch % size:
            lower = batch // size * size
            nearest = [f"{value:,}" for value in (lower, lower + size) if value]
            said.append(
                f"a batch of {batch:,} {name} units is not divisible by {size:,} devices: only layouts whose model "
                f"is cut keep it; the nearest batches that are: {' and '.join(nearest)} (--global-batch)"
            )
    if found.plans and problem.cluster.device.is_cpu:
        said.append(
            f"{problem.cluster.name}: the constants are those of one machine; d2v tune --calibrate measures yours"
        )
    return said


def _reasons(refusals: list[Refusal]) -> list[tuple[str, int]]:
    """One example per field, with the number of layouts that the field refuses."""
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for refusal in refusals:
        field = refusal.reason.partition(":")[0]
        if field == "--deepspeed":
            field = refusal.reason.partition(" is ")[0]
        if field == "parallel.zero_stage":
            field = refusal.reason.partition(" does not")[0]
        examples.setdefault(field, refusal.reason)
        counts[field] += 1
    return [(examples[field], number) for field, number in counts.most_common()]
