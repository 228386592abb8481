"""Which of the planner's layouts are worth measuring."""

from deploy.plan.plan import Plan
from deploy.plan.search import Search


def best(found: Search, number: int) -> list[Plan]:
    """The planner's best: of every layout its best microbatch first, then other microbatches of the best layouts."""
    first: dict[object, Plan] = {}
    for plan in found.plans:
        first.setdefault(plan.config.parallel, plan)
    chosen = list(first.values())[:number]
    others = [plan for plan in found.plans if not any(plan is one for one in chosen)]
    return chosen + others[: number - len(chosen)]
