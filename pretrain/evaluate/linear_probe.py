"""Linear probe: multinomial logistic regression on frozen features, solved to convergence."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.errors import RunError

GRADIENT_TOLERANCE = 1e-5
"""The probe counts as solved when no partial derivative of its mean loss exceeds this."""


class LinearProbe(NamedTuple):
    """The fitted classifier: ``features @ weight.T + bias``."""

    weight: Tensor
    """(classes, D)."""
    bias: Tensor
    """(classes,)."""

    def predict(self, features: Tensor) -> Tensor:
        """Features (N, D) -> labels (N,)."""
        return (features @ self.weight.T + self.bias).argmax(dim=1)


def probe_accuracy(bank: Tensor, bank_labels: Tensor, test: Tensor, test_labels: Tensor, *, l2: float = 1e-3) -> float:
    """Share of the test samples that a probe fitted on the bank labels rightly; see ``fit_probe``."""
    probe = fit_probe(bank, bank_labels, l2=l2)
    return (probe.predict(test) == test_labels).double().mean().item()


def fit_probe(
    features: Tensor, labels: Tensor, *, l2: float = 1e-3, max_iterations: int = 1000, chunk: int = 65_536
) -> LinearProbe:
    """Minimise mean cross entropy + l2/2 * |weight|^2 by L-BFGS over the whole bank.

    The problem is convex and starts from zero, so there is nothing to seed. It is scikit-learn's
    ``LogisticRegression(C=1 / (l2 * N))``, but runs on the device of ``features`` and holds the logits of one chunk
    only, as a bank of ImageNet's size needs.

    Args:
        features: (N, D), standardised.
        labels: (N,) int64, from 0.
        l2: strength of the penalty; the bias is free.
        max_iterations: limit of the solver, generous: hundreds suffice.
        chunk: rows whose logits are held at once.
    Raises:
        RunError: if ``l2`` is not positive: without a penalty separable classes have no solution.
    """
    if not l2 > 0:
        raise RunError(f"--l2: must be above 0, got {l2}")
    num_classes = int(labels.max()) + 1
    weight = features.new_zeros(num_classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> float:
        solver.zero_grad()
        total = l2 / 2 * weight.square().sum()
        total.backward()
        value = total.item()
        for rows, row_labels in zip(features.split(chunk), labels.split(chunk), strict=True):
            error = functional.cross_entropy(rows @ weight.T + bias, row_labels, reduction="sum")
            share = error / len(features)
            share.backward()
            value += share.item()
        return value

    solver.step(loss_and_gradient)
    return LinearProbe(weight.detach(), bias.detach())
