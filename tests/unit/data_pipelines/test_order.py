import numpy as np
import pytest
from scipy import stats

from data_pipelines.order import sample_at, stream_key


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 64, 65, 1000, 4096, 20_001])
def test_each_epoch_is_a_permutation(num_samples: int) -> None:
    for epoch in (0, 1, 37):
        epochs, samples = sample_at(5, np.arange(num_samples) + epoch * num_samples, num_samples)
        assert (epochs == epoch).all()
        np.testing.assert_array_equal(np.sort(samples), np.arange(num_samples))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_ranks_together_see_every_sample_once(num_ranks: int) -> None:
    num_samples, microbatch = 60, 5
    seen: list[int] = []
    for step in range(num_samples // (num_ranks * microbatch)):
        for rank in range(num_ranks):
            start = step * num_ranks * microbatch + rank * microbatch
            seen += sample_at(1, np.arange(start, start + microbatch), num_samples)[1].tolist()
    assert sorted(seen) == list(range(num_samples))


def test_a_position_has_one_sample_however_it_is_asked_for() -> None:
    positions = np.arange(300, 420).reshape(3, 40)
    epochs, samples = sample_at(9, positions, 111)
    assert samples.shape == (3, 40)
    for position, epoch, sample in zip(positions.flat, epochs.flat, samples.flat, strict=True):
        assert sample_at(9, position, 111) == (epoch, sample)


def test_seed_and_epoch_change_the_order() -> None:
    first = sample_at(1, np.arange(1000), 1000)[1]
    for other in (sample_at(2, np.arange(1000), 1000)[1], sample_at(1, np.arange(1000, 2000), 1000)[1]):
        assert (first == other).mean() < 0.01


def test_every_sample_is_equally_likely_at_every_place() -> None:
    """One chi-squared over the table place x sample; twelve separate ones would cry wolf twelve times as often."""
    num_samples, num_epochs = 12, 4_000
    samples = sample_at(3, np.arange(num_samples * num_epochs), num_samples)[1].reshape(num_epochs, num_samples)
    counts = np.stack([np.bincount(samples[:, place], minlength=num_samples) for place in range(num_samples)])
    expected = num_epochs / num_samples
    # Rows and columns of a sum of permutation matrices are fixed: (n - 1)^2 degrees after scaling by (n - 1) / n.
    statistic = ((counts - expected) ** 2 / expected).sum() * (num_samples - 1) / num_samples
    assert stats.chi2.sf(statistic, (num_samples - 1) ** 2) > 0.001


def test_neighbours_in_the_data_set_are_apart_in_the_order() -> None:
    samples = sample_at(4, np.arange(10_000), 10_000)[1]
    steps = np.diff(samples)
    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 0.04
    assert (abs(steps) == 1).mean() < 0.002


def test_a_billion_samples_cost_no_memory() -> None:
    epochs, samples = sample_at(1, [0, 10**9 - 1, 10**9], 10**9)
    assert epochs.tolist() == [0, 0, 1]
    assert ((samples >= 0) & (samples < 10**9)).all()


def test_stream_keys_differ_by_every_part_and_by_their_number() -> None:
    tuples = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (1 << 32,), (1, 1 << 32), (1 << 63,), (-1,)]
    keys = [stream_key(*parts) for parts in tuples]
    assert len(set(keys)) == len(tuples)
    assert all(0 <= key < 1 << 63 for key in keys)


def test_stream_keys_stay_the_same() -> None:
    """They key what a checkpointed run sees next: another value would silently change resumed runs."""
    assert stream_key(1, 2, 3) == 9000938580248669710
    assert sample_at(1, np.arange(8), 100)[1].tolist() == [10, 76, 44, 26, 68, 71, 84, 19]
