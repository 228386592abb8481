"""Bytes -> what an encoder reads, as evaluation does it: no augmentation, no cuts."""

import numpy as np
import torch
from torch import Tensor

from data_pipelines.config import AudioSourceConfig, ImageSourceConfig, SourceConfig
from data_pipelines.errors import DataError
from data_pipelines.tokenizers.base import END, START, Tokenizer
from data_pipelines.transforms.audio import load_audio
from data_pipelines.transforms.image import load_image
from data_pipelines.transforms.text import read_tokens
from deploy.embedding.items import Item
from model.config import AudioConfig, TextConfig
from model.sections import ModalityConfig


class Decoder:
    """Items -> tensors of one modality.

    Attributes:
        num_cut: texts that were longer than the model reads, and lost their end.
    """

    def __init__(self, side: ModalityConfig, source: SourceConfig, tokenizer: Tokenizer | None) -> None:
        """Args: the modality; its transform; who makes tokens of text that is not in shards."""
        self._side, self._source, self._tokenizer = side, source, tokenizer
        self.num_cut = 0

    def __call__(self, item: Item) -> Tensor:
        """An image (C, S, S), a waveform (L,) without the samples behind its last frame, or token numbers (T,).

        Raises:
            DataError: if the bytes are of no use; says why.
        """
        data = item.read()
        if isinstance(self._source, ImageSourceConfig):
            return torch.from_numpy(load_image(data, self._source))
        if isinstance(self._source, AudioSourceConfig):
            return self._waveform(data, self._source)
        return self._tokens(data, item.in_shard)

    def _waveform(self, data: bytes, source: AudioSourceConfig) -> Tensor:
        assert isinstance(self._side, AudioConfig)
        waveform = load_audio(data, source)
        frames = self._side.num_frames(len(waveform))
        if frames < 1:
            raise DataError("shorter than one frame")
        used = frames
        for _, kernel, stride in reversed(self._side.conv_layers):
            used = (used - 1) * stride + kernel
        return torch.from_numpy(waveform[:used])

    def _tokens(self, data: bytes, in_shard: bool) -> Tensor:
        assert isinstance(self._side, TextConfig)
        longest = self._side.max_positions
        if in_shard or self._tokenizer is None:
            ids = read_tokens(data, self._side.vocab_size)
        else:
            try:
                text = data.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError("not UTF-8 text") from error
            if not text:
                raise DataError("is empty")
            ids = np.array([START, *self._tokenizer.encode(text), END])
        if len(ids) > longest:
            self.num_cut += 1
            ids = ids[:longest]
        return torch.from_numpy(ids)
