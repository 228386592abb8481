"""Ways to judge frozen features, each with the settings that belong to its numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pretrain.evaluate.knn import knn_accuracy
from pretrain.evaluate.linear_probe import probe_accuracy


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to judge features."""

    name: str
    """What the command line and evaluation.json call it."""
    title: str
    """What a reader is told."""
    settings: dict[str, Any]
    """Keyword arguments of ``accuracy``."""
    accuracy: Callable[..., float]
    """(bank, its labels, test, its labels, **settings) -> share of the test samples that are labelled rightly."""
    plain_pixels: bool
    """Judge raw pixels without standardisation too, and quote the better: neighbours depend on the scale."""

    def measure(self, bank: Tensor, bank_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
        """Accuracy on the test samples under this protocol's settings."""
        return self.accuracy(bank, bank_labels, test, test_labels, **self.settings)


def knn(*, num_neighbours: int = 20, temperature: float = 0.07) -> Protocol:
    """Weighted k nearest neighbours by cosine similarity (defaults of DINO)."""
    return Protocol(
        name="knn",
        title="k nearest neighbours",
        settings={"num_neighbours": num_neighbours, "temperature": temperature},
        accuracy=knn_accuracy,
        plain_pixels=True,
    )


def probe(*, l2: float = 1e-3) -> Protocol:
    """Multinomial logistic regression, solved to convergence."""
    return Protocol(
        name="probe", title="linear probe", settings={"l2": l2}, accuracy=probe_accuracy, plain_pixels=False
    )
