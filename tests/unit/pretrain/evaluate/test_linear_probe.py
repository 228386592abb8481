import numpy
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pretrain.errors import RunError
from pretrain.evaluate.features import standardise
from pretrain.evaluate.linear_probe import fit_probe, probe_accuracy
from tests.unit.pretrain.evaluate.conftest import Split

L2 = 1e-2


def test_solution_equals_scikit_learn(handwriting: Split) -> None:
    bank, test = standardise(handwriting.bank, handwriting.test)
    reference = LogisticRegression(C=1 / (L2 * len(bank)), tol=1e-8, max_iter=2000).fit(
        bank.double().numpy(), handwriting.bank_labels.numpy()
    )
    probe = fit_probe(bank, handwriting.bank_labels, l2=L2)
    assert numpy.abs(probe.weight.numpy() - reference.coef_).max() < 2e-3 * numpy.abs(reference.coef_).max()
    assert numpy.array_equal(probe.predict(test).numpy(), reference.predict(test.double().numpy()))
    accuracy = probe_accuracy(bank, handwriting.bank_labels, test, handwriting.test_labels, l2=L2)
    assert accuracy == (probe.predict(test) == handwriting.test_labels).double().mean().item()
    assert accuracy > 0.93


def test_chunks_reach_the_same_solution(handwriting: Split) -> None:
    bank, _ = standardise(handwriting.bank, handwriting.test)
    whole = fit_probe(bank, handwriting.bank_labels, l2=L2)
    chunked = fit_probe(bank, handwriting.bank_labels, l2=L2, chunk=97)
    torch.testing.assert_close(chunked.weight, whole.weight, atol=2e-3, rtol=0)
    torch.testing.assert_close(chunked.bias, whole.bias, atol=2e-3, rtol=0)


def test_twice_is_the_same(handwriting: Split) -> None:
    bank, _ = standardise(handwriting.bank, handwriting.test)
    first, second = (fit_probe(bank, handwriting.bank_labels) for _ in range(2))
    assert torch.equal(first.weight, second.weight)


def test_shuffled_labels_teach_nothing(handwriting: Split) -> None:
    bank, test = standardise(handwriting.bank, handwriting.test)
    shuffled = handwriting.bank_labels[torch.randperm(1300, generator=torch.Generator().manual_seed(1))]
    assert probe_accuracy(bank, shuffled, test, handwriting.test_labels) < 0.2


def test_no_penalty_is_refused(handwriting: Split) -> None:
    with pytest.raises(RunError, match="--l2: must be above 0, got 0"):
        fit_probe(handwriting.bank, handwriting.bank_labels, l2=0.0)
