import numpy
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from pretrain.errors import RunError
from pretrain.evaluate.features import standardise
from pretrain.evaluate.knn import knn_accuracy, knn_predict
from tests.unit.pretrain.evaluate.conftest import Split


def test_votes_equal_scikit_learn(handwriting: Split) -> None:
    """Cosine distance is 1 - similarity, so the vote exp(similarity / T) is scikit-learn's with these weights."""
    reference = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: numpy.exp((1 - distance) / 0.07)
    ).fit(handwriting.bank.numpy(), handwriting.bank_labels.numpy())
    predicted = knn_predict(handwriting.bank, handwriting.bank_labels, handwriting.test)
    assert numpy.array_equal(predicted.numpy(), reference.predict(handwriting.test.numpy()))
    accuracy = knn_accuracy(handwriting.bank, handwriting.bank_labels, handwriting.test, handwriting.test_labels)
    assert accuracy == pytest.approx(
        reference.score(handwriting.test.numpy(), handwriting.test_labels.numpy()), abs=1e-12
    )
    assert accuracy > 0.95


def test_temperature_weighs_the_votes() -> None:
    """Two far neighbours of class 0 outvote a near one of class 1 when warm, not when cold."""
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    labels = torch.tensor([1, 0, 0])
    row = torch.tensor([[2.0, 0.0]])
    assert knn_predict(bank, labels, row, num_neighbours=3, temperature=10.0).tolist() == [0]
    assert knn_predict(bank, labels, row, num_neighbours=3, temperature=0.07).tolist() == [1]
    assert knn_predict(bank, labels, row, num_neighbours=3, temperature=1e-4).tolist() == [1]


@pytest.mark.parametrize(("test_chunk", "bank_chunk"), [(7, 11), (64, 1300), (497, 256)])
def test_chunks_change_nothing(handwriting: Split, test_chunk: int, bank_chunk: int) -> None:
    whole = knn_predict(
        handwriting.bank, handwriting.bank_labels, handwriting.test, test_chunk=10_000, bank_chunk=10_000
    )
    chunked = knn_predict(
        handwriting.bank, handwriting.bank_labels, handwriting.test, test_chunk=test_chunk, bank_chunk=bank_chunk
    )
    assert torch.equal(chunked, whole)


def test_standardise_uses_the_bank(handwriting: Split) -> None:
    bank, test = standardise(handwriting.bank, handwriting.test)
    varies = handwriting.bank.std(dim=0) > 0
    assert 0 < (~varies).sum() < 10
    torch.testing.assert_close(bank.std(dim=0, correction=0)[varies], torch.ones(int(varies.sum())))
    torch.testing.assert_close(bank.mean(dim=0), torch.zeros(64), atol=1e-5, rtol=0)
    assert bank[:, ~varies].abs().max() == 0
    expected = (handwriting.test - handwriting.bank.mean(dim=0)) / handwriting.bank.std(dim=0, correction=0)
    torch.testing.assert_close(test[:, varies], expected[:, varies])


def test_settings_that_cannot_work(handwriting: Split) -> None:
    with pytest.raises(RunError, match="--temperature: must be above 0, got 0"):
        knn_predict(handwriting.bank, handwriting.bank_labels, handwriting.test, temperature=0)
    with pytest.raises(RunError, match="--k: 20 neighbours asked for, the bank has 19 samples"):
        knn_predict(handwriting.bank[:19], handwriting.bank_labels[:19], handwriting.test)
