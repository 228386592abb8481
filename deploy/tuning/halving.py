"""Successive halving: many candidates for a few steps, the better half for twice as many, until one is left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from deploy.tuning.trial import Measurement

Candidate = TypeVar("Candidate")


@dataclass
class Standing(Generic[Candidate]):
    """A candidate and its measurements, round by round."""

    candidate: Candidate
    rounds: list[Measurement] = field(default_factory=list)

    @property
    def last(self) -> Measurement:
        """The measurement with most steps."""
        return self.rounds[-1]


def successive_halving(
    candidates: Sequence[Candidate],
    measure: Callable[[Candidate, int], Measurement | None],
    *,
    steps: int,
    enough: Callable[[], bool],
) -> list[Standing[Candidate]]:
    """Best first: those that came further before others, then by their last measurement; failures last.

    Args:
        candidates: to compare.
        measure: of one, for so many steps; None if time was up before it had them, which says nothing of it.
        steps: of the first round.
        enough: whether time is up: then no more is measured.
    """
    standings = [Standing(candidate) for candidate in candidates]
    racing = standings
    while racing:
        for standing in racing:
            if enough() and any(one.rounds for one in standings):
                break
            found = measure(standing.candidate, steps)
            if found is None:
                break
            standing.rounds.append(found)
        alive = sorted((one for one in racing if one.rounds and one.last.seconds), key=lambda one: one.last.median)
        if len(alive) <= 2 or enough():  # two have met with all those steps: no third round would part them
            break
        racing, steps = alive[: -(-len(alive) // 2)], 2 * steps
    return sorted(
        (one for one in standings if one.rounds),
        key=lambda one: (not one.last.seconds, -len(one.rounds), one.last.median),
    )


def told_apart(first: Measurement, second: Measurement) -> bool:
    """Whether the difference between two medians is more than twice what their spread explains."""
    return abs(first.median - second.median) > 2 * (first.error**2 + second.error**2) ** 0.5
