"""Decoded items -> rows of features, in batches; of all items only the keys are held."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deploy.embedding.inputs import Decoded
from deploy.embedding.rows import Rows
from model.config import PADDING_ID
from model.data2vec import Data2Vec

_BATCHES_AHEAD = 8
"""Decoded before the next batch is chosen among them."""
_MOST_VALUES = 2**26
"""Elements of decoded items that wait for that at most, 256 MiB of waveforms."""


@dataclass
class Counts:
    """What became of the items.

    Attributes:
        num_cut: texts that were longer than the model reads.
        left_out: reason -> number of items.
        examples: reason -> key of the first of them.
    """

    num_cut: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, decoded: Decoded) -> None:
        """Count some more."""
        self.num_cut += decoded.num_cut
        for key, reason in decoded.left_out:
            self.left_out[reason] += 1
            self.examples.setdefault(reason, key)


class Embedder:
    """An encoder of one modality on its device.

    Attributes:
        pads: whether items of different lengths can share a batch.
    """

    def __init__(self, encoder: Data2Vec, device: torch.device, *, per_token: bool) -> None:
        """Args: the encoder; where it runs; whether tokens are kept apart instead of averaged."""
        ((self._modality, self._side),) = encoder.config.modalities.items()
        self._encoder, self._device, self._per_token = encoder.to(device), device, per_token
        self.pads = self._modality == "text"

    @torch.no_grad()
    def __call__(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Features of one batch. Texts are padded, which changes nothing; images and waveforms have one size."""
        padding = None
        if self.pads:
            batch = pad_sequence(list(sources), batch_first=True, padding_value=PADDING_ID).to(self._device)
            lengths = torch.tensor([len(source) for source in sources], device=self._device)
            padding = torch.arange(batch.shape[1], device=self._device) >= lengths[:, None]
        else:
            batch = torch.stack(list(sources)).to(self._device)
        features = self._encoder.features(batch, modality=self._modality, padding=padding)
        tokens = features[:, self._side.num_extra_tokens :].float().cpu()
        lengths_of = [len(row) for row in tokens] if padding is None else lengths.tolist()
        real = [row[:length] for row, length in zip(tokens, lengths_of, strict=True)]
        return [row.clone() if self._per_token else row.mean(dim=0) for row in real]


def embed(
    chunks: Iterable[Decoded], embedder: Embedder, batch_size: int, rows: Rows, report: Callable[[int], None]
) -> Counts:
    """Encode everything that can be decoded, in its order.

    Recordings share a batch only with others of the same number of frames: convolutional positions see padding, so
    the last of a recording's frames would change with its neighbours.

    Args:
        chunks: what to encode.
        embedder: tensors -> features.
        batch_size: most items at once.
        rows: where features go: fp32, each (D,), or (T, D) per token without extra ones.
        report: called with the number of items that are done.
    """
    counts = Counts()
    keys: list[str] = []
    waiting: list[Tensor] = []

    def encode_waiting() -> None:
        done: dict[int, Tensor] = {}
        for batch in _batches(waiting, batch_size, mixed=embedder.pads):
            features = embedder([waiting[place] for place in batch])
            done |= zip(batch, features, strict=True)
            report(len(rows) + len(done) + counts.left_out.total())
        rows.add(keys, [done[place] for place in range(len(keys))])
        keys.clear()
        waiting.clear()

    for chunk in chunks:
        counts.add(chunk)
        keys += chunk.keys
        waiting += chunk.sources()
        if len(waiting) >= _BATCHES_AHEAD * batch_size or sum(map(Tensor.numel, waiting)) >= _MOST_VALUES:
            encode_waiting()
    encode_waiting()
    return counts


def _batches(waiting: list[Tensor], size: int, *, mixed: bool) -> list[list[int]]:
    """Places of neighbours in length together; of one length only, unless ``mixed``."""
    batches: list[list[int]] = []
    for place in sorted(range(len(waiting)), key=lambda place: waiting[place].shape[-1]):
        last = batches[-1] if batches else []
        if last and len(last) < size and (mixed or waiting[last[-1]].shape == waiting[place].shape):
            last.append(place)
        else:
            batches.append([place])
    return batches
