"""The order of a step's microbatches, and what a mixture reports."""

from collections.abc import Iterator
from typing import Any

import pytest

from data_pipelines.mixture import Mixture, interleaved


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"a": 1}, "a"),
        ({"a": 2, "b": 1}, "aba"),
        ({"a": 1, "b": 1, "c": 1}, "abc"),
        ({"a": 2, "b": 1, "c": 1}, "abca"),
        ({"a": 4, "b": 2, "c": 2}, "abcaabca"),
        ({"a": 3, "b": 2}, "ababa"),
        ({"a": 1, "b": 5}, "bbabb b".replace(" ", "")),
    ],
)
def test_names_are_spread_evenly(numbers: dict[str, int], expected: str) -> None:
    assert "".join(interleaved(numbers)) == expected


def test_every_name_comes_as_often_as_it_should_and_never_bunches() -> None:
    numbers = {"image": 7, "audio": 3, "text": 5}
    order = interleaved(numbers)
    assert {name: order.count(name) for name in numbers} == numbers
    for name, number in numbers.items():
        for place in range(1, len(order) + 1):
            assert abs(order[:place].count(name) - number * place / len(order)) <= 1


class Counter:
    """Stands in for a loader: counts its microbatches."""

    def __init__(self, name: str, num_microbatches: int, global_batch_size: int, wait_seconds: float) -> None:
        self.name = name
        self.num_microbatches = num_microbatches
        self.global_batch_size = global_batch_size
        self.wait_seconds = wait_seconds
        self.closed = False
        self._given = 0

    def start_at(self, position: int) -> None:
        self._given = position // self.global_batch_size * self.num_microbatches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> str:
        self._given += 1
        return f"{self.name}{self._given}"

    def close(self) -> None:
        self.closed = True


def test_steps_take_each_loader_in_its_own_order() -> None:
    loaders = {"image": Counter("i", 2, 32, 0.5), "audio": Counter("a", 1, 2, 0.25), "text": Counter("t", 1, 8, 0.0)}
    mixture = Mixture(loaders)  # type: ignore[arg-type]
    steps = [mixture.next_step() for _ in range(2)]
    assert steps == [["i1", "a1", "t1", "i2"], ["i3", "a2", "t2", "i4"]]
    assert mixture.step_sizes == {"image": 32, "audio": 2, "text": 8}
    assert mixture.wait_seconds == 0.75
    mixture.start_at({"image": 96, "audio": 6, "text": 24})  # three steps
    assert mixture.next_step() == ["i7", "a4", "t4", "i8"]
    mixture.close()
    assert all(loader.closed for loader in loaders.values())
