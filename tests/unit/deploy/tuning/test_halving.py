"""Successive halving on measurements that are given, and when two medians differ."""

import itertools

import pytest

from deploy.tuning.halving import successive_halving, told_apart
from deploy.tuning.trial import Measurement


def never() -> bool:
    return False


def steady(seconds: float, steps: int) -> Measurement:
    return Measurement((seconds,) * steps, 1.0)


def test_the_better_half_goes_on_for_twice_as_many_steps() -> None:
    asked: list[tuple[float, int]] = []

    def measure(seconds: float, steps: int) -> Measurement:
        asked.append((seconds, steps))
        return steady(seconds, steps)

    standings = successive_halving([3.0, 1.0, 2.0, 5.0, 4.0], measure, steps=4, enough=never)
    assert [one.candidate for one in standings] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert asked == [
        (3.0, 4),
        (1.0, 4),
        (2.0, 4),
        (5.0, 4),
        (4.0, 4),
        (1.0, 8),
        (2.0, 8),
        (3.0, 8),
        (1.0, 16),
        (2.0, 16),
    ]


def test_a_late_bloomer_wins_the_round_it_is_in() -> None:
    """Whoever is fastest with most steps comes first, whatever earlier rounds said."""
    by_steps = {(1, 4): 1.0, (2, 4): 1.1, (3, 4): 9.0, (1, 8): 1.2, (2, 8): 1.0}
    standings = successive_halving(
        [1, 2, 3], lambda which, steps: steady(by_steps[which, steps], steps), steps=4, enough=never
    )
    assert [one.candidate for one in standings] == [2, 1, 3]


def test_failures_are_kept_and_come_last() -> None:
    def measure(which: int, steps: int) -> Measurement:
        return Measurement(problem="out of memory") if which == 1 else steady(which, steps)

    standings = successive_halving([1, 3, 2], measure, steps=2, enough=never)
    assert [one.candidate for one in standings] == [2, 3, 1]
    assert standings[-1].last.problem == "out of memory"


def test_all_may_fail() -> None:
    standings = successive_halving([1, 2], lambda *_: Measurement(problem="no"), steps=2, enough=never)
    assert [one.last.problem for one in standings] == ["no", "no"]


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_what_time_does_not_allow_is_left_out(number: int) -> None:
    counter = itertools.count()
    standings = successive_halving(
        [1, 2, 3, 4], lambda which, steps: steady(which, steps), steps=2, enough=lambda: next(counter) >= number
    )
    assert len(standings) == max(number, 1) and all(len(one.rounds) == 1 for one in standings)


def test_whom_the_end_of_time_interrupts_keeps_its_place() -> None:
    """The best of the first round is under way in the second when time is up: what it has counts."""
    over: list[bool] = []

    def measure(which: int, steps: int) -> Measurement | None:
        if steps == 4:
            over.append(True)
            return None
        return steady(which, steps)

    standings = successive_halving([3, 1, 2, 4], measure, steps=2, enough=lambda: bool(over))
    assert [(one.candidate, len(one.rounds)) for one in standings] == [(1, 1), (2, 1), (3, 1), (4, 1)]


def test_medians_differ_beyond_their_spread() -> None:
    wide = [0.8, 0.9, 1.0, 1.1, 1.2]
    first, second = Measurement(tuple(wide)), Measurement(tuple(value + 0.1 for value in wide))
    assert not told_apart(first, second)
    assert told_apart(first, Measurement(tuple(value + 0.5 for value in wide)))
    assert told_apart(Measurement(tuple(wide * 100)), Measurement(tuple(value + 0.1 for value in wide * 100)))
    assert told_apart(Measurement((1.0,) * 5), Measurement((1.001,) * 5))
