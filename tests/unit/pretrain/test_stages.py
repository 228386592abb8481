"""Stages are balanced by work, frontends and decoders counted."""

import itertools

import pytest

from model.accounting import train_flops_by_part, train_flops_per_sample
from pretrain.parallel.stages import Work, cut_evenly, stages_of
from pretrain.recipes.registry import recipe

COSTS = [(0.0, 0.0), (2.0, 1.6), (2.4, 0.15), (0.0, 6.9), (7.3, 7.1)]


def every_cut(depth: int, pp_size: int) -> list[list[int]]:
    cuts = itertools.combinations(range(1, depth), pp_size - 1)
    return [[b - a for a, b in itertools.pairwise((0, *places, depth))] for places in cuts]


def busiest(counts: list[int], first: float, last: float) -> float:
    costs = [float(count) for count in counts]
    costs[0] += first
    costs[-1] += last
    return max(costs)


@pytest.mark.parametrize(("first", "last"), COSTS)
@pytest.mark.parametrize("depth", [1, 2, 5, 10, 12])
def test_no_cut_is_better(depth: int, first: float, last: float) -> None:
    """Against all cuts there are."""
    for pp_size in range(1, depth + 1):
        stages = cut_evenly(depth, pp_size, first=first, block=1.0, last=last)
        assert [number for stage in stages for number in stage] == list(range(depth))
        counts = [len(stage) for stage in stages]
        assert len(counts) == pp_size
        assert min(counts) >= 1
        best = min(busiest(other, first, last) for other in every_cut(depth, pp_size))
        assert busiest(counts, first, last) == pytest.approx(best)


@pytest.mark.parametrize(
    ("depth", "pp_size", "first", "last", "counts"),
    [
        (12, 4, 0.0, 0.0, [3, 3, 3, 3]),
        (10, 4, 0.0, 0.0, [2, 2, 3, 3]),  # earlier stages keep more microbatches' activations
        (11, 4, 2.0, 1.0, [1, 3, 4, 3]),
        (12, 3, 20.0, 0.0, [1, 5, 6]),  # a frontend beyond its share still gets a block
    ],
)
def test_known_cuts(depth: int, pp_size: int, first: float, last: float, counts: list[int]) -> None:
    stages = cut_evenly(depth, pp_size, first=first, block=1.0, last=last)
    assert [len(stage) for stage in stages] == counts


def test_parts_add_up_to_the_step() -> None:
    for name, length in (("image-base", 224), ("audio-base", 160_000), ("text-base", 512)):
        model = recipe(name).model
        (modality,) = model.modalities
        first, block, last = train_flops_by_part(model, modality, length)
        assert first + model.encoder.depth * block + last == train_flops_per_sample(model, modality, length)


def test_decoder_and_frontend_move_the_cut() -> None:
    """Text has a decoder of seven blocks and a frontend for nothing, speech the other way round."""
    text, audio = recipe("text-base").model, recipe("audio-base").model
    by_text = stages_of(text, {"text": Work(1, 512)}, pp_size=2)
    by_audio = stages_of(audio, {"audio": Work(1, 160_000)}, pp_size=2)
    assert len(by_text[0]) == 9
    assert len(by_audio[0]) == 5


def test_how_many_samples_there_are_does_not_matter_for_one_modality() -> None:
    image = recipe("image-base").model
    assert stages_of(image, {"image": Work(1, 224)}, pp_size=4) == stages_of(image, {"image": Work(64, 224)}, pp_size=4)
