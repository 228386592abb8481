"""Real handwritten digits (scikit-learn's, 8x8) as labelled features."""

from typing import NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor


class Split(NamedTuple):
    """A labelled bank and labelled test samples that are not in it."""

    bank: Tensor
    bank_labels: Tensor
    test: Tensor
    test_labels: Tensor


@pytest.fixture(scope="session")
def handwriting() -> Split:
    values, labels = load_digits(return_X_y=True)
    features, classes = torch.tensor(values, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    bank, test = order[:1300], order[1300:]
    return Split(features[bank], classes[bank], features[test], classes[test])
