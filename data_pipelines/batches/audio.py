"""Batches of masked waveforms of about the same length."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.batches.base import (
    AUGMENT,
    MASK,
    MAX_SUBSTITUTES,
    SUBSTITUTE,
    Batch,
    Masking,
    first_usable,
    kept_per_view,
)
from data_pipelines.config import AudioSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.lengths import LengthPlan
from data_pipelines.order import stream_key
from data_pipelines.reader import Reader
from data_pipelines.shards.index import UNKNOWN_DURATION
from data_pipelines.transforms.audio import audio_member, load_audio
from data_pipelines.transforms.resampling import length_at_speed, resampled_length


class AudioBatches:
    """Positions count planned batches (see ``BatchSource`` and ``LengthPlan``).

    With speed perturbation recordings count with their length at the highest speed: a recording that was drawn
    slower is cut to that, so batches hold the same samples whatever was drawn.
    """

    def __init__(self, reader: Reader, config: AudioSourceConfig, seed: int, masking: Masking) -> None:
        """Plan the batches.

        Args:
            reader: the open shards.
            config: the transforms, and how batches are planned.
            seed: of the run.
            masking: makes the masks.
        Raises:
            DataError: if the indices tell no durations, or no recording is long enough.
        """
        self._reader = reader
        self._config = config
        self._seed = seed
        self._masking = masking
        self._plan = LengthPlan(
            _lengths(reader, config),
            min_length=math.ceil(config.min_seconds * config.sample_rate),
            max_length=int(config.max_seconds * config.sample_rate),
            batch_length=int(config.batch_seconds * config.sample_rate),
            seed=seed,
        )

    def batch(self, start: int, size: int) -> Batch:
        """The planned batch at position ``start``; ``size`` must be 1.

        Raises:
            DataError: if a sample and all its substitutes are unusable.
        """
        if size != 1:
            raise DataError(
                f"data.audio.microbatch_size: must be 1, for a unit of audio is a whole planned batch "
                f"(data.audio.batch_seconds); got {size}"
            )
        epoch, samples, lengths, spares = self._plan.batch_at(start)
        if self._config.crop_to_shortest:
            lengths = np.full_like(lengths, lengths.min())
        rejected: list[str] = []
        chosen, waveforms = [], []
        for sample, length in zip(samples.tolist(), lengths.tolist(), strict=True):
            load = functools.partial(self._waveform, epoch=epoch, length=length)
            used, waveform = first_usable(self._candidates(sample, epoch, spares), load, rejected)
            chosen.append(used)
            waveforms.append(waveform)
        return self._batch(start, epoch, chosen, waveforms, tuple(rejected))

    def _candidates(self, sample: int, epoch: int, spares: NDArray[np.int64]) -> Iterator[int]:
        """The sample, then spares from a place of its own on."""
        others = spares[spares != sample]
        first = stream_key(self._seed, SUBSTITUTE, epoch, sample) % max(1, len(others))
        return itertools.chain([sample], np.roll(others, -first)[: MAX_SUBSTITUTES - 1].tolist())

    def _waveform(self, sample: int, epoch: int, length: int) -> NDArray[np.float32]:
        """A random window of a recording: ``length`` samples, or as many as it counts with if those are fewer."""
        length = min(length, int(self._plan.lengths[sample]))
        data = self._reader.read(sample, audio_member).content
        generator = np.random.default_rng(stream_key(self._seed, AUGMENT, epoch, sample))
        try:
            waveform = load_audio(data, self._config, generator)
        except DataError as error:
            raise DataError(f"{self._reader.describe(sample)}: {error}") from error
        if len(waveform) < length:
            raise DataError(
                f"{self._reader.describe(sample)}: is shorter than its index says; {_reindex(self._reader)}"
            )
        offset = int(generator.integers(len(waveform) - length + 1))
        return waveform[offset : offset + length]

    def _batch(
        self,
        position: int,
        epoch: int,
        samples: Sequence[int],
        waveforms: Sequence[NDArray[np.float32]],
        rejected: tuple[str, ...],
    ) -> Batch:
        """Put waveforms together, shorter ones with zeros on the right."""
        lengths = list(map(len, waveforms))
        if self._config.crop_to_shortest:  # they are equally long but for a substitute in the batch of the longest
            lengths = [min(lengths)] * len(lengths)
        source = torch.zeros(len(waveforms), max(lengths))
        for row, waveform in zip(source, waveforms, strict=True):
            row[: len(waveform)] = torch.from_numpy(waveform[: len(row)])
        mask = self._masking.masks([stream_key(self._seed, MASK, epoch, sample) for sample in samples], lengths)
        return Batch(
            modality="audio",
            position=position,
            source=source,
            mask=mask,
            num_kept=kept_per_view(mask),
            padding=self._padding(lengths),
            sample=torch.tensor(samples),
            epoch=torch.full((len(samples),), epoch),
            seconds=sum(lengths) / self._config.sample_rate,
            rejected=rejected,
        )

    def _padding(self, lengths: Sequence[int]) -> Tensor | None:
        num_tokens = torch.tensor([self._masking.num_tokens(length) for length in lengths])
        padding = torch.arange(int(num_tokens.max())) >= num_tokens[:, None]
        return padding if padding.any() else None


def _lengths(reader: Reader, config: AudioSourceConfig) -> NDArray[np.int64]:
    """(N,) samples of every recording after the transforms, at the highest speed; 0 where there is none."""
    num_frames = reader.num_frames()
    unknown = np.flatnonzero(num_frames == UNKNOWN_DURATION)
    if len(unknown):
        raise DataError(
            f"{reader.describe(int(unknown[0]))}: its index is old and tells no durations; {_reindex(reader)}"
        )
    lengths = np.zeros(len(reader), np.int64)
    there = np.flatnonzero(num_frames)
    lengths[there] = resampled_length(num_frames[there], reader.sample_rates()[there], config.sample_rate)
    if config.speed_factors:
        lengths = length_at_speed(lengths, config.sample_rate, max(config.speed_factors))
    if not len(there):
        raise DataError(f"{reader.path}: holds no recordings")
    longest = lengths.max() / config.sample_rate
    if longest < config.min_seconds:
        raise DataError(
            f"{reader.path}: the longest of {len(there):,} recordings lasts {longest:.2f} s, "
            f"data.audio.min_seconds is {config.min_seconds}"
        )
    return lengths


def _reindex(reader: Reader) -> str:
    return f"'d2v shards index --force {reader.path}' makes a new one"
