"""Bytes -> what an encoder reads, as evaluation does it: no augmentation, no cuts; in worker processes."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.config import AudioSourceConfig, ImageSourceConfig, SourceConfig
from data_pipelines.errors import DataError
from data_pipelines.tokenizers.base import END, START, Tokenizer
from data_pipelines.transforms.audio import load_audio
from data_pipelines.transforms.image import load_image
from data_pipelines.transforms.text import read_tokens
from data_pipelines.workers import process_loader, results
from deploy.embedding.items import Item
from model.config import AudioConfig, TextConfig
from model.sections import ModalityConfig

_ITEMS_AT_ONCE = 8
"""Of one message from a worker process."""
_AHEAD = 2
"""Messages that every worker prepares ahead."""


@dataclass(frozen=True)
class Decoded:
    """Some items, those that can be encoded and those that cannot. One tensor, for each takes a file handle to send."""

    keys: list[str]
    """Of those that can."""
    values: Tensor
    """Their elements, one item after the other."""
    shapes: list[tuple[int, ...]]
    """Of each: an image (C, S, S), a waveform (L,) without the samples behind its last frame, token numbers (T,)."""
    left_out: list[tuple[str, str]]
    """Keys and reasons."""
    num_cut: int
    """Texts that were longer than the model reads, and lost their end."""

    def sources(self) -> list[Tensor]:
        """One tensor for each key."""
        parts = self.values.split([int(np.prod(shape)) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class Decoder:
    """Items -> tensors of one modality."""

    def __init__(self, side: ModalityConfig, source: SourceConfig, tokenizer: Tokenizer | None) -> None:
        """Args: the modality; its transform; who makes tokens of text that is not in shards."""
        self._side, self._source, self._tokenizer = side, source, tokenizer

    def over(self, items: Sequence[Item], num_workers: int) -> Generator[Any, None, None]:
        """``Decoded`` for ``Decoded``, in the order of the items. Closing this generator ends the workers.

        Args:
            items: what to decode.
            num_workers: processes; where there is not enough for two it happens here.
        Raises:
            DataError: if a worker process died.
        """
        starts = range(0, len(items), _ITEMS_AT_ONCE)
        num_workers = min(num_workers, len(starts)) if len(starts) > 1 else 0

        def decode(start: int) -> Decoded:
            return self(items[start : start + _ITEMS_AT_ONCE])

        return results(process_loader(decode, starts, num_workers=num_workers, prefetch=_AHEAD))

    def __call__(self, items: Sequence[Item]) -> Decoded:
        """Decode some items."""
        keys, arrays, left_out, num_cut = [], [], [], 0
        for item in items:
            try:
                array, is_cut = self._decode(item)
            except DataError as error:
                left_out.append((item.key, str(error)))
                continue
            keys.append(item.key)
            arrays.append(array)
            num_cut += is_cut
        values = np.concatenate([array.reshape(-1) for array in arrays]) if arrays else np.empty(0, np.float32)
        return Decoded(keys, torch.from_numpy(values), [array.shape for array in arrays], left_out, num_cut)

    def _decode(self, item: Item) -> tuple[np.ndarray, bool]:
        """One item, and whether it lost its end.

        Raises:
            DataError: if the bytes are of no use; says why.
        """
        data = item.read()
        if isinstance(self._source, ImageSourceConfig):
            return load_image(data, self._source), False
        if isinstance(self._source, AudioSourceConfig):
            return self._waveform(data, self._source), False
        ids = self._tokens(data, item.in_shard)
        assert isinstance(self._side, TextConfig)
        return ids[: self._side.max_positions], len(ids) > self._side.max_positions

    def _waveform(self, data: bytes, source: AudioSourceConfig) -> np.ndarray:
        assert isinstance(self._side, AudioConfig)
        waveform = load_audio(data, source)
        frames = self._side.num_frames(len(waveform))
        if frames < 1:
            raise DataError("shorter than one frame")
        used = frames
        for _, kernel, stride in reversed(self._side.conv_layers):
            used = (used - 1) * stride + kernel
        return waveform[:used]

    def _tokens(self, data: bytes, in_shard: bool) -> np.ndarray:
        assert isinstance(self._side, TextConfig)
        if in_shard or self._tokenizer is None:
            return read_tokens(data, self._side.vocab_size)
        try:
            text = data.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError("not UTF-8 text") from error
        if not text:
            raise DataError("is empty")
        return np.array([START, *self._tokenizer.encode(text), END])
