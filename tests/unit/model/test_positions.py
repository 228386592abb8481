"""Position table and slopes against the formulas, cell by cell; the committed golden only loads a table."""

import math

import pytest
import torch

from model.positions import alibi_2d, alibi_slopes, sincos_2d


def test_first_half_encodes_the_column_second_the_row() -> None:
    grid, dim = 3, 16
    table = sincos_2d(grid, dim)[0]
    for cell in range(grid * grid):
        expected = []
        for place in (cell % grid, cell // grid):
            angles = [place * 10000 ** (-i / (dim / 4)) for i in range(dim // 4)]
            expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        torch.testing.assert_close(table[cell], torch.tensor(expected), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("num_heads", "exponents"),
    [
        (1, [8]),
        (4, [2, 4, 6, 8]),
        (6, [2, 4, 6, 8, 1, 3]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes(num_heads: int, exponents: list[float]) -> None:
    torch.testing.assert_close(alibi_slopes(num_heads), torch.tensor([2.0**-e for e in exponents]), rtol=1e-6, atol=0)


def test_bias_is_slope_times_distance() -> None:
    bias = alibi_2d(4, 3, "euclidean")
    assert bias[1, 0, 5].item() == pytest.approx(-(2**-4) * math.sqrt(5))
    assert alibi_2d(4, 3, "manhattan")[1, 0, 5].item() == pytest.approx(-(2**-4) * 3)
