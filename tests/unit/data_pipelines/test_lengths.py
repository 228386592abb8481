import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.lengths import LengthPlan

SHORTEST, LONGEST, BUDGET = 200, 2_000, 6_000


def some_lengths(number: int = 300, seed: int = 0) -> NDArray[np.int64]:
    """Many equal ones, some too short, some too long."""
    return np.random.default_rng(seed).integers(1, 25, number) * 100


def make_plan(lengths: NDArray[np.int64], seed: int = 7) -> LengthPlan:
    return LengthPlan(lengths, min_length=SHORTEST, max_length=LONGEST, batch_length=BUDGET, seed=seed)


def as_fairseq(lengths: NDArray[np.int64]) -> list[list[int]]:
    """Lengths of all batches by the rule of fairseq's ``batch_by_size`` with ``required_batch_size_multiple`` 1."""
    batches: list[list[int]] = [[]]
    for length in sorted((min(one, LONGEST) for one in lengths.tolist() if one >= SHORTEST), reverse=True):
        if batches[-1] and max(batches[-1][0], length) * (len(batches[-1]) + 1) > BUDGET:
            batches.append([])
        batches[-1].append(length)
    return batches


def test_every_epoch_draws_every_long_recording_once() -> None:
    lengths = some_lengths()
    plan = make_plan(lengths)
    for epoch in range(3):
        batches = [plan.batch_at(epoch * plan.num_batches + number) for number in range(plan.num_batches)]
        assert {batch.epoch for batch in batches} == {epoch}
        samples = np.concatenate([batch.samples for batch in batches])
        np.testing.assert_array_equal(np.sort(samples), np.flatnonzero(lengths >= SHORTEST))


def test_batches_are_filled_as_by_fairseq() -> None:
    lengths = some_lengths()
    plan = make_plan(lengths)
    batches = [plan.batch_at(number) for number in range(plan.num_batches)]
    for batch in batches:
        np.testing.assert_array_equal(batch.lengths, np.minimum(lengths[batch.samples], LONGEST))
        assert batch.lengths[0] * len(batch.samples) <= BUDGET
    in_order = sorted((batch.lengths.tolist() for batch in batches), key=lambda one: (-one[0], -one[-1], -len(one)))
    assert in_order == sorted(as_fairseq(lengths), key=lambda one: (-one[0], -one[-1], -len(one)))


def test_any_process_plans_the_same() -> None:
    lengths = some_lengths()
    plan = make_plan(lengths)
    for position in (0, 5, plan.num_batches - 1, plan.num_batches, 10**9, 3):
        for ours, theirs in zip(plan.batch_at(position), make_plan(lengths).batch_at(position), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_epochs_and_seeds_differ_in_order_and_among_equals() -> None:
    lengths = some_lengths()
    plan, other = make_plan(lengths), make_plan(lengths, seed=8)
    first, second, third = (
        [one.batch_at(start + number) for number in range(plan.num_batches)]
        for one, start in ((plan, 0), (plan, plan.num_batches), (other, 0))
    )
    for changed in (second, third):
        assert [batch.lengths[0] for batch in first] != [batch.lengths[0] for batch in changed]
        together = {frozenset(batch.samples.tolist()) for batch in first}
        assert len(together & {frozenset(batch.samples.tolist()) for batch in changed}) < plan.num_batches / 2


def test_equally_long_recordings_meet_in_all_combinations() -> None:
    """Of 6 equal ones in batches of 3, any two share a batch in 2 of 5 epochs."""
    plan = LengthPlan(np.full(6, 100), min_length=1, max_length=100, batch_length=300, seed=1)
    assert plan.num_batches == 2
    together = np.zeros((6, 6))
    num_epochs = 500
    for position in range(2 * num_epochs):
        samples = plan.batch_at(position).samples
        together[np.ix_(samples, samples)] += 1
    pairs = together[~np.eye(6, dtype=bool)] / num_epochs
    assert np.abs(pairs - 0.4).max() < 0.1  # 4.5 standard deviations


def test_batches_come_in_an_order_of_their_own() -> None:
    plan = make_plan(some_lengths(3_000))
    longest = [plan.batch_at(number).lengths[0] for number in range(plan.num_batches)]
    assert abs(np.corrcoef(longest, np.arange(plan.num_batches))[0, 1]) < 0.15


def test_spares_are_the_next_longer_ones() -> None:
    lengths = some_lengths()
    plan = make_plan(lengths)
    batches = [plan.batch_at(number) for number in range(plan.num_batches)]
    by_length = np.sort(plan.lengths[lengths >= SHORTEST])[::-1]
    num_firsts = 0
    for batch in batches:
        spare_lengths = plan.lengths[batch.spares]
        if set(batch.spares.tolist()) & set(batch.samples.tolist()):
            num_firsts += 1
            assert batch.lengths[0] == LONGEST  # nothing is longer
            np.testing.assert_array_equal(spare_lengths, by_length[:64])
        else:
            assert 1 <= len(batch.spares) <= 64
            assert spare_lengths.min() >= batch.lengths.max()
            assert spare_lengths.min() - batch.lengths.max() <= 100  # its neighbours
    assert num_firsts == 1


def test_few_orders_are_kept() -> None:
    plan = make_plan(some_lengths())
    for epoch in (0, 1, 2, 3, 2, 3):
        plan.batch_at(epoch * plan.num_batches)
    assert sorted(plan._orders) == [2, 3]


def test_one_recording_is_a_plan() -> None:
    plan = LengthPlan(np.array([5, 400, 7]), min_length=400, max_length=400, batch_length=400, seed=0)
    assert [plan.batch_at(position).samples.tolist() for position in (0, 1, 17)] == [[1], [1], [1]]
    assert [plan.batch_at(position).epoch for position in (0, 1, 17)] == [0, 1, 17]


@pytest.mark.parametrize("number", [1, 13, 100_000])
def test_big_plans_are_cut_without_loss(number: int) -> None:
    lengths = np.random.default_rng(number).integers(SHORTEST, 3 * LONGEST, number)
    plan = make_plan(lengths)
    sizes = [len(one) for one in as_fairseq(lengths)]
    assert plan.num_batches == len(sizes)
    assert sum(sizes) == number
