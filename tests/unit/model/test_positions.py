"""Position tables, slopes and distances against formulas and the reference; the committed goldens only load a table."""

import math

import pytest
import torch

from model.positions import alibi_slopes, distances_1d, distances_2d, sincos_2d
from tests.golden.tables import masks_seeded


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


def test_distances_are_those_of_the_kept_tokens() -> None:
    kept = torch.tensor([[0, 5, 7], [2, 3, 8]])
    assert distances_1d(kept).tolist()[1] == [[0, 1, 6], [1, 0, 5], [6, 5, 0]]
    assert distances_2d(kept, 3, "euclidean")[0, 0, 1].item() == pytest.approx(math.sqrt(1 + 4))
    assert distances_2d(kept, 3, "manhattan")[0, 0, 1].item() == 3


@pytest.mark.parametrize("num_heads", [4, 12, 16])
def test_bias_of_sequences_equals_the_references_table(num_heads: int) -> None:
    bias = -alibi_slopes(num_heads).view(-1, 1, 1) * distances_1d(torch.arange(16).unsqueeze(0))
    torch.testing.assert_close(bias, masks_seeded()[f"alibi1d_h{num_heads}_T16"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("distance", "name"), [("manhattan", "manhattan"), ("euclidean", "euclid")])
def test_bias_of_grids_equals_the_references_table(distance: str, name: str) -> None:
    bias = -alibi_slopes(4).view(-1, 1, 1) * distances_2d(torch.arange(16).unsqueeze(0), 4, distance)  # type: ignore[arg-type]
    torch.testing.assert_close(bias, masks_seeded()[f"alibi2d_{name}_h4_4x4"], rtol=1e-6, atol=0)
