"""Which blocks each stage of a pipeline has: equal work, frontends and decoders counted. No torch."""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from model.accounting import Flops, train_flops_by_part
from model.config import ModelConfig


class Work(NamedTuple):
    """What one step takes of a modality."""

    num_samples: float
    length: int
    """Of a typical sample's raw input, as in ``model.accounting.tokens_of``."""


def stages_of(config: ModelConfig, work: dict[str, Work], *, pp_size: int) -> list[range]:
    """Numbers of the shared blocks of every stage, such that the busiest stage does least.

    Tensor parallelism changes nothing: its ranks share the work of blocks, frontends and decoders alike.

    Args:
        config: the model.
        work: of one step, by modality.
        pp_size: stages.
    """
    parts = {name: train_flops_by_part(config, name, each.length) for name, each in work.items()}
    first, block, last = (
        sum(work[name].num_samples * flops[index] for name, flops in parts.items())
        for index in range(len(Flops._fields))
    )
    return cut_evenly(config.encoder.depth, pp_size, first=first, block=block, last=last)


def cut_evenly(depth: int, pp_size: int, *, first: float, block: float, last: float) -> list[range]:
    """``depth`` blocks in ``pp_size`` runs of at least one, the costliest as cheap as can be.

    Of equally good cuts it takes the one with the most even costs, then the one with fewer blocks in earlier stages,
    which keep the activations of more microbatches.

    Args:
        depth: blocks.
        pp_size: stages.
        first: cost that the first stage has beside its blocks.
        block: cost of a block.
        last: cost that the last stage has beside its blocks.
    """
    if pp_size == 1:
        return [range(depth)]

    def badness(counts: list[int]) -> tuple[float, float, list[int]]:
        costs = [block * count for count in counts]
        costs[0] += first
        costs[-1] += last
        return max(costs), sum(cost**2 for cost in costs), counts

    counts = min(_candidates(depth, pp_size), key=badness)
    starts = [sum(counts[:stage]) for stage in range(pp_size + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(starts)]


def _candidates(depth: int, pp_size: int) -> Iterable[list[int]]:
    """Counts of blocks by stage with every legal first and last one, the others as even as can be."""
    inner = pp_size - 2
    for begin in range(1, depth - pp_size + 2):
        for end in range(1, depth - inner - begin + 1):
            rest = depth - begin - end
            if inner or not rest:
                yield [begin, *((rest + stage) // inner for stage in range(inner)), end]
