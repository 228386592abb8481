"""Items -> features, in batches."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_pipelines.errors import DataError
from deploy.embedding.inputs import Decoder
from deploy.embedding.items import Item
from model.config import PADDING_ID
from model.data2vec import Data2Vec

_BATCHES_AHEAD = 8
"""Decoded before the next batch is chosen among them."""


@dataclass
class Embedded:
    """Features of those items that could be used, in their order.

    Attributes:
        keys: of the items.
        features: fp32 on the CPU, each (D,), or (T, D) per token without extra ones.
        left_out: reason -> number of items.
        examples: reason -> key of the first of them.
    """

    keys: list[str] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def leave_out(self, key: str, reason: str) -> None:
        """Count an item that is of no use."""
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
    items: Sequence[Item], decode: Decoder, embedder: Embedder, batch_size: int, report: Callable[[int], None]
) -> Embedded:
    """Encode everything that can be decoded.

    Recordings share a batch only with others of the same number of frames: convolutional positions see padding, so
    the last of a recording's frames would change with its neighbours.

    Args:
        items: what to encode.
        decode: bytes -> tensor.
        embedder: tensors -> features.
        batch_size: most items at once.
        report: called with the number of items that are done.
    """
    result = Embedded()
    done: dict[int, Tensor] = {}
    waiting: list[tuple[int, Tensor]] = []
    for number, item in enumerate(items):
        try:
            waiting.append((number, decode(item)))
        except DataError as error:
            result.leave_out(item.key, str(error))
        if len(waiting) == _BATCHES_AHEAD * batch_size or number + 1 == len(items):
            for batch in _batches(waiting, batch_size, mixed=embedder.pads):
                features = embedder([source for _, source in batch])
                done |= {which: row for (which, _), row in zip(batch, features, strict=True)}
                report(len(done) + result.left_out.total())
            waiting = []
    result.keys = [items[number].key for number in sorted(done)]
    result.features = [done[number] for number in sorted(done)]
    return result


def _batches(waiting: list[tuple[int, Tensor]], size: int, *, mixed: bool) -> list[list[tuple[int, Tensor]]]:
    """Neighbours in length together; of one length only, unless ``mixed``."""
    batches: list[list[tuple[int, Tensor]]] = []
    for pair in sorted(waiting, key=lambda pair: pair[1].shape[-1]):
        last = batches[-1] if batches else []
        if last and len(last) < size and (mixed or last[-1][1].shape == pair[1].shape):
            last.append(pair)
        else:
            batches.append([pair])
    return batches
