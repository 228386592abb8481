"""Some of a batch's rows: the same tokens, samples and losses as of all of them."""

import itertools

import pytest
import torch

from model.masking import split_views


@pytest.mark.parametrize(("num_samples", "num_views"), [(1, 1), (1, 4), (2, 3), (3, 2)])
def test_a_run_of_rows_is_that_part_of_everything(num_samples: int, num_views: int) -> None:
    order = torch.rand(num_samples, num_views, 6).argsort(dim=2)
    views = split_views(order >= 2, num_kept=2)
    samples = torch.randn(num_samples, 6, 5)
    rows = samples.repeat_interleave(num_views, dim=0)
    assert torch.equal(views.spread(samples), rows)
    total = num_samples * num_views
    for start, stop in itertools.combinations_with_replacement(range(total + 1), 2):
        run = views.of(range(start, stop))
        assert torch.equal(run.spread(samples), rows[start:stop])
        for part, whole in zip(run[:4], views[:4], strict=True):
            assert torch.equal(part, whole[start:stop])
        assert {row // num_views for row in range(start, stop)} <= set(run.samples)
        assert torch.equal(
            run.trimmed(rows[run.samples.start * num_views : run.samples.stop * num_views]), run.spread(samples)
        )
        for first, last in itertools.combinations_with_replacement(range(stop - start + 1), 2):
            part = run.of(range(first, last))
            assert torch.equal(part.spread(samples), rows[start + first : start + last])
