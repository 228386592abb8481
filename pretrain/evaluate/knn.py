"""Weighted k-nearest-neighbour classification by cosine similarity (k 20, temperature 0.07 as in DINO).

Neither the similarities of all pairs nor a copy of the bank on another device is ever held: test and bank are
walked in chunks, and the best k found so far are merged with those of the next chunk.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.errors import RunError


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    num_neighbours: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of the test samples that ``knn_predict`` labels rightly; the arguments are the same."""
    predicted = knn_predict(bank, bank_labels, test, num_neighbours=num_neighbours, temperature=temperature)
    return (predicted == test_labels).double().mean().item()


def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    test: Tensor,
    *,
    num_neighbours: int = 20,
    temperature: float = 0.07,
    test_chunk: int = 256,
    bank_chunk: int = 65_536,
) -> Tensor:
    """Label of every test sample: its nearest neighbours vote, each with weight exp(cosine / temperature).

    Args:
        bank: (N, D) features, of any length; they are normalised here.
        bank_labels: (N,) int64.
        test: (M, D) features.
        num_neighbours: how many vote.
        temperature: small values let the nearest decide.
        test_chunk, bank_chunk: rows that are compared at once; they bound the memory and change no result.
    Returns:
        (M,) int64.
    Raises:
        RunError: if the bank holds fewer than ``num_neighbours`` samples or the temperature is not positive.
    """
    if not temperature > 0:
        raise RunError(f"--temperature: must be above 0, got {temperature}")
    if not 1 <= num_neighbours <= len(bank):
        raise RunError(f"--k: {num_neighbours} neighbours asked for, the bank has {len(bank)} samples")
    num_classes = int(bank_labels.max()) + 1
    predicted = []
    for rows in test.split(test_chunk):
        similarity, labels = _nearest(bank, bank_labels, rows, num_neighbours, bank_chunk)
        # Weights relative to the best neighbour's: the same vote, and no overflow at small temperatures.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(rows), num_classes).scatter_add_(1, labels, weights)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)


def _nearest(
    bank: Tensor, bank_labels: Tensor, rows: Tensor, num_neighbours: int, bank_chunk: int
) -> tuple[Tensor, Tensor]:
    """Cosine similarity, descending, and label of the nearest bank samples of each row: two (rows, k) tensors."""
    rows = functional.normalize(rows, dim=1)
    similarity = rows.new_empty(len(rows), 0)
    labels = bank_labels.new_empty(len(rows), 0)
    for chunk, chunk_labels in zip(bank.split(bank_chunk), bank_labels.split(bank_chunk), strict=True):
        similarity = torch.cat([similarity, rows @ functional.normalize(chunk, dim=1).T], dim=1)
        labels = torch.cat([labels, chunk_labels.expand(len(rows), -1)], dim=1)
        similarity, best = similarity.topk(min(num_neighbours, similarity.shape[1]), dim=1)
        labels = labels.gather(1, best)
    return similarity, labels
