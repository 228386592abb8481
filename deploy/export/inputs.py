"""A small batch of each modality, with padding where it can have some: what exports are compared on."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipelines.config import AudioSourceConfig, DataConfig, ImageSourceConfig, SourceConfig
from data_pipelines.errors import DataError
from data_pipelines.reader import Reader
from data_pipelines.transforms.audio import audio_bytes, load_audio
from data_pipelines.transforms.image import image_bytes, load_image
from data_pipelines.transforms.text import read_tokens, token_bytes
from deploy.export.data2vec2.modeling import INPUTS
from model.config import PADDING_ID, AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.sections import ModalityConfig

NUM_SAMPLES = 4
_NOUNS = {"image": "images", "audio": "recordings", "text": "texts"}
_SHARES = (1.0, 0.75, 0.55, 0.4)
"""Lengths of the samples of a batch, as shares of the longest."""
_SECONDS = 1.5
_SPECIALS = 4  # token numbers below are <s>, <pad>, </s>, <unk>


class Inputs(NamedTuple):
    """A batch of one modality."""

    source: Tensor
    """Images (B, C, S, S), waveforms (B, L) or token numbers (B, T)."""
    attention_mask: Tensor | None
    """(B, L) or (B, T), 1 for real samples or tokens; images have none."""
    padding: Tensor | None
    """The same for our own model: (B, T) bool over frames or tokens, True for padding."""
    origin: str
    """Where the samples come from, in words."""

    def given(self, modality: str) -> dict[str, Tensor]:
        """The batch by the names of transformers."""
        mask = {} if self.attention_mask is None else {"attention_mask": self.attention_mask}
        return {INPUTS[modality]: self.source, **mask}

    def real(self, output: Tensor) -> Tensor:
        """What an output has of real frames or tokens: rows (N, D) of (B, extra + T, D); others have no padding."""
        if self.padding is None or output.dim() < 3:
            return output
        num_extra = output.shape[1] - self.padding.shape[1]
        return output[torch.nn.functional.pad(~self.padding, (num_extra, 0), value=True)]

    def alone(self) -> "Inputs":
        """The last and shortest sample without the others, so without padding."""
        if self.attention_mask is None:
            return self._replace(source=self.source[-1:])
        length = int(self.attention_mask[-1].sum())
        assert self.padding is not None
        frames = int((~self.padding[-1]).sum())
        return Inputs(
            self.source[-1:, :length],
            self.attention_mask[-1:, :length],
            self.padding[-1:, :frames],
            f"{self.origin}; the last of them alone",
        )


def example_inputs(model: ModelConfig, data: DataConfig) -> Inputs:
    """Samples of a run's own data if that is at hand, else random ones; of different lengths, padded.

    Args:
        model: of one modality.
        data: of the run.
    """
    ((modality, side),) = model.modalities.items()
    try:
        path = data.path_of(modality)
        reader = Reader(path)
        members = [reader.read(number).members for number in range(min(NUM_SAMPLES, len(reader)))]
        arrays = list(_decoded(data.sources[modality], members))
        origin = f"{len(arrays)} {_NOUNS[modality]} of {path}"
    except DataError:
        arrays = list(_random(side, data))
        origin = f"{len(arrays)} random {_NOUNS[modality]}"
    if modality == "image":
        return Inputs(torch.from_numpy(np.stack(arrays)), None, None, origin)
    return _padded(arrays, side, data, origin)


def _padded(arrays: list[np.ndarray], side: ModalityConfig, data: DataConfig, origin: str) -> Inputs:
    """Cut waveforms or rows of tokens to different lengths, then pad them to the longest."""
    audio = side if isinstance(side, AudioConfig) else None
    longest, shortest = min(map(len, arrays)), 1
    if audio is not None:
        longest, shortest = min(longest, int(_SECONDS * _sample_rate(data))), audio.receptive_field
    lengths = [max(shortest, int(longest * share)) for share in _SHARES[: len(arrays)]]
    rows = [torch.from_numpy(array[:length]) for array, length in zip(arrays, lengths, strict=True)]
    source = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if audio else PADDING_ID)
    mask = torch.arange(source.shape[1]) < torch.tensor(lengths)[:, None]
    origin += f", {lengths[-1]:,} to {lengths[0]:,} {'waveform samples' if audio else 'tokens'} long"
    if audio is None:
        return Inputs(source, mask.long(), ~mask, origin)
    frames = torch.tensor([audio.num_frames(length) for length in lengths])
    return Inputs(source, mask.long(), torch.arange(audio.num_frames(source.shape[1])) >= frames[:, None], origin)


def _decoded(source: SourceConfig, members: list[dict[str, bytes]]) -> Iterator[np.ndarray]:
    for sample in members:
        if isinstance(source, ImageSourceConfig):
            yield load_image(image_bytes(sample), source)
        elif isinstance(source, AudioSourceConfig):
            yield load_audio(audio_bytes(sample), source)
        else:
            yield read_tokens(token_bytes(sample))


def _random(side: ModalityConfig, data: DataConfig) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    for _ in range(NUM_SAMPLES):
        if isinstance(side, ImageConfig):
            shape = (side.in_channels, side.image_size, side.image_size)
            yield generator.standard_normal(shape, np.float32)
        elif isinstance(side, AudioConfig):
            length = max(int(_SECONDS * _sample_rate(data)), 8 * side.receptive_field)
            yield generator.standard_normal(length, np.float32)
        else:
            assert isinstance(side, TextConfig)
            ids = generator.integers(_SPECIALS, side.vocab_size, min(side.max_positions, 64))
            yield np.concatenate([[0], ids[1:]])


def _sample_rate(data: DataConfig) -> int:
    assert data.audio is not None
    return data.audio.sample_rate
