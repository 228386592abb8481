"""The microbatches of one step over all modalities, in an order that is the same on every rank."""

from collections.abc import Mapping

from data_pipelines.batches.base import Batch
from data_pipelines.loader import Loader


class Mixture:
    """Steps of a run: from each modality's loader its microbatches, spread evenly over the step."""

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        """Args: by modality; each knows its microbatches of one step."""
        self._loaders = dict(loaders)
        self._order = interleaved({name: loader.num_microbatches for name, loader in loaders.items()})

    @property
    def step_sizes(self) -> dict[str, int]:
        """Units that one step over all ranks consumes, by modality."""
        return {name: loader.global_batch_size for name, loader in self._loaders.items()}

    def start_at(self, positions: Mapping[str, int]) -> None:
        """Begin every modality's stream where earlier steps ended; before the first step."""
        for name, loader in self._loaders.items():
            loader.start_at(positions[name])

    @property
    def wait_seconds(self) -> float:
        """Time spent in waiting for batches, cumulative."""
        return sum(loader.wait_seconds for loader in self._loaders.values())

    def next_step(self) -> list[Batch]:
        """The microbatches of the next step.

        Raises:
            DataError: as ``Loader.__next__``.
        """
        return [next(self._loaders[name]) for name in self._order]

    def close(self) -> None:
        """End the worker processes and close the shards."""
        for loader in self._loaders.values():
            loader.close()


def interleaved(numbers: Mapping[str, int]) -> list[str]:
    """Names, each as often as its number says and evenly spread: 2 a, 1 b -> a, b, a."""
    places = [
        ((2 * turn + 1) / (2 * number), order, name)
        for order, (name, number) in enumerate(numbers.items())
        for turn in range(number)
    ]
    return [name for _, _, name in sorted(places)]
