import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.batches.audio import AudioBatches
from data_pipelines.batches.base import AUGMENT, MASK, Batch
from data_pipelines.config import AudioSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.order import stream_key
from data_pipelines.reader import Reader
from data_pipelines.shards.index import read_index, write_index
from data_pipelines.shards.writer import Stored, write_shard
from data_pipelines.transforms.audio import load_audio
from tests.unit.data_pipelines.photographs import flip_bit
from tests.unit.data_pipelines.speech import FrameMasks, encode, speech, write_speech_shards

SECONDS = (*np.random.default_rng(3).uniform(0.3, 2.4, 30).round(2), 0.1, 0.2, 5.0, 1.0, 1.0, 1.0)
CONFIG = AudioSourceConfig(min_seconds=0.5, max_seconds=2.0, batch_seconds=6.0)
PADDED = AudioSourceConfig(min_seconds=0.5, max_seconds=2.0, batch_seconds=6.0, crop_to_shortest=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech") / "shards"
    write_speech_shards(folder, SECONDS)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Free to be damaged."""
    write_speech_shards(tmp_path / "shards", SECONDS)
    return tmp_path / "shards"


def make(folder: Path, config: AudioSourceConfig = CONFIG, seed: int = 5, **changes: Any) -> AudioBatches:
    return AudioBatches(Reader(str(folder)), config, seed, FrameMasks(**changes))


def epoch_of(batches: AudioBatches, number: int = 0) -> list[Batch]:
    """All batches of one epoch."""
    size = batches._plan.num_batches
    return [batches.batch(position, 1) for position in range(number * size, (number + 1) * size)]


def seconds_of(batch: Batch) -> list[float]:
    """Durations that the recordings of a batch count with."""
    return [min(SECONDS[sample], 2.0) for sample in batch.sample.tolist()]


def samples_in(seconds: float) -> int:
    return round(16_000 * seconds)


def assert_same(one: Batch, other: Batch) -> None:
    for name in ("source", "mask", "sample", "epoch"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (one.padding is None) == (other.padding is None)
    assert one.padding is None or torch.equal(one.padding, other.padding)
    assert (one.position, one.num_kept, one.rejected) == (other.position, other.num_kept, other.rejected)


def test_every_recording_is_cut_to_the_shortest_of_its_batch(whole: Path) -> None:
    batches = epoch_of(make(whole))
    assert len(batches) > 8
    for position, batch in enumerate(batches):
        shortest = samples_in(min(seconds_of(batch)))
        num_frames = (shortest - 400) // 320 + 1
        assert (batch.source.shape, batch.source.dtype) == ((len(batch.sample), shortest), torch.float32)
        assert (batch.mask.shape, batch.mask.dtype) == ((len(batch.sample), 2, num_frames), torch.bool)
        assert ((~batch.mask).sum(dim=-1) == batch.num_kept).all()
        assert batch.padding is None
        assert (batch.modality, batch.position, batch.rejected) == ("audio", position, ())
        assert max(seconds_of(batch)) * len(batch.sample) <= 6.0
    drawn = sorted(torch.cat([batch.sample for batch in batches]).tolist())
    assert drawn == [number for number, seconds in enumerate(SECONDS) if seconds >= 0.5]
    assert len(drawn) < len(SECONDS) - 2


def test_windows_are_of_the_normalised_recording_at_keyed_offsets(whole: Path) -> None:
    reader = Reader(str(whole))
    offsets = []
    for batch in epoch_of(make(whole), number=2):
        for row, sample in zip(batch.source, batch.sample.tolist(), strict=True):
            generator = np.random.default_rng(stream_key(5, AUGMENT, 2, sample))
            waveform = torch.from_numpy(load_audio(reader.read(sample).members["flac"], CONFIG, generator))
            offset = int(generator.integers(len(waveform) - len(row) + 1))
            assert torch.equal(row, waveform[offset : offset + len(row)])
            offsets.append(offset / max(1, len(waveform) - len(row)))
    assert min(offsets) < 0.2 and max(offsets) > 0.8


def test_masks_are_keyed_by_epoch_and_sample_and_made_for_the_cut_length(whole: Path) -> None:
    for epoch in (0, 1):
        for batch in epoch_of(make(whole), epoch):
            keys = [stream_key(5, MASK, epoch, sample) for sample in batch.sample.tolist()]
            assert torch.equal(batch.mask, FrameMasks().masks(keys, [batch.length] * len(keys)))
            assert (batch.epoch == epoch).all()


@pytest.mark.parametrize("config", [CONFIG, PADDED])
def test_batches_follow_from_their_position_alone(whole: Path, config: AudioSourceConfig) -> None:
    batches, later = make(whole, config), make(whole, config)
    for position in (13, 3, 0, 40):
        assert_same(batches.batch(position, 1), later.batch(position, 1))
    assert not torch.equal(batches.batch(0, 1).sample, make(whole, config, seed=6).batch(0, 1).sample)


def test_epochs_draw_other_windows(whole: Path) -> None:
    rows: list[dict[int, torch.Tensor]] = [{}, {}]
    batches = make(whole)
    for epoch, found in enumerate(rows):
        for batch in epoch_of(batches, epoch):
            found.update(zip(batch.sample.tolist(), batch.source, strict=True))
    same = [torch.equal(rows[0][sample], rows[1][sample]) for sample in rows[0]]
    assert rows[0].keys() == rows[1].keys()
    assert np.mean(same) < 0.4  # the shortest of a batch has one window only


def test_padded_batches_hold_every_recording_whole(whole: Path) -> None:
    reader = Reader(str(whole))
    num_padded = 0
    for batch in epoch_of(make(whole, PADDED)):
        lengths = [samples_in(seconds) for seconds in seconds_of(batch)]
        frames = torch.tensor([(length - 400) // 320 + 1 for length in lengths])
        assert batch.source.shape == (len(lengths), max(lengths))
        assert batch.mask.shape[-1] == frames.max()
        expected = torch.arange(int(frames.max())) >= frames[:, None]
        num_padded += int(expected.sum())
        assert batch.padding is None if not expected.any() else torch.equal(batch.padding, expected)
        for row, length, sample in zip(batch.source, lengths, batch.sample.tolist(), strict=True):
            assert not row[length:].any()
            if SECONDS[sample] <= 2.0:  # padded after it was normalised
                waveform = load_audio(reader.read(sample).members["flac"], PADDED)
                np.testing.assert_array_equal(row[:length].numpy(), waveform)
    assert num_padded > 100


def test_a_rate_other_than_the_files_plans_with_the_lengths_after_resampling(whole: Path) -> None:
    config = AudioSourceConfig(sample_rate=11_025, min_seconds=0.5, max_seconds=2.0, batch_seconds=6.0)
    for batch in epoch_of(make(whole, config)):
        assert batch.length == min(int(np.ceil(np.float32(samples_in(one) * 441 / 640))) for one in seconds_of(batch))


@pytest.mark.parametrize("crop", [True, False])
def test_with_speeds_batches_hold_what_the_highest_speed_leaves(whole: Path, crop: bool) -> None:
    fast = AudioSourceConfig(
        min_seconds=0.5, max_seconds=2.0, batch_seconds=6.0, speed_factors=(0.9, 1.0, 1.25), crop_to_shortest=crop
    )
    batches = make(whole, fast)
    plans = [[batch.source.shape for batch in epoch_of(batches, epoch)] for epoch in (0, 1)]
    assert sorted(plans[0]) == sorted(plans[1])
    for batch in epoch_of(batches):
        counted = [min(int(np.ceil(samples_in(SECONDS[n]) / 1.25)), 32_000) for n in batch.sample.tolist()]
        assert batch.length == (min(counted) if crop else max(counted))
        assert min(counted) >= 8_000


def test_a_unit_is_a_whole_batch(whole: Path) -> None:
    with pytest.raises(DataError, match=r"^data.audio.microbatch_size: must be 1, .* got 4$"):
        make(whole).batch(0, 4)


def test_too_short_recordings_are_no_data(tmp_path: Path) -> None:
    write_speech_shards(tmp_path / "short", [0.3, 0.45, 0.2])
    with pytest.raises(
        DataError, match=r"short: the longest of 3 recordings lasts 0.45 s, data.audio.min_seconds is 0"
    ):
        make(tmp_path / "short")
    write_shard(tmp_path / "text.tar", [Stored("a", {"txt": b"no sound"})])
    with pytest.raises(DataError, match=r": holds no recordings$"):
        make(tmp_path / "text.tar")


def test_an_index_without_durations_names_the_command_that_mends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = folder / "shard-000001.tar"
    index = read_index(shard)
    monkeypatch.setattr("data_pipelines.shards.index.VERSION", 1)
    write_index(shard, index)
    monkeypatch.undo()
    message = (
        rf"shard-000001.tar: sample '012': its index is old .*; 'd2v shards index --force {re.escape(str(folder))}'"
    )
    with pytest.raises(DataError, match=message):
        make(folder)


@pytest.mark.parametrize("config", [CONFIG, PADDED])
def test_unusable_recordings_are_replaced_by_longer_ones(folder: Path, config: AudioSourceConfig) -> None:
    untouched = epoch_of(make(folder, config))
    shard = folder / "shard-000000.tar"
    column = read_index(shard).columns["flac"]
    damaged = [number for number in range(12) if SECONDS[number] >= 0.5][::3]
    for number in damaged:
        flip_bit(shard, int(column.offset[number]) + 1000)
    batches = epoch_of(make(folder, config))
    for batch, before in zip(batches, untouched, strict=True):
        bad = [place for place, sample in enumerate(before.sample.tolist()) if sample in damaged]
        assert len(batch.rejected) >= len(bad) and all("fails its CRC-32" in line for line in batch.rejected)
        assert not set(batch.sample.tolist()) & set(damaged)
        if config.crop_to_shortest:
            assert batch.source.shape == before.source.shape
        for place in range(len(before.sample)):
            if place not in bad:
                assert batch.sample[place] == before.sample[place]
                length = min(batch.length, before.length)
                assert torch.equal(batch.source[place, :length], before.source[place, :length])
        assert batch.source.abs().amax(dim=1).min() > 0
    assert sum(map(len, (batch.rejected for batch in batches))) >= len(damaged)
    again = make(folder, config)
    for batch in batches:
        assert_same(again.batch(batch.position, 1), batch)


def test_when_all_are_unusable_the_reason_of_the_last_is_told(tmp_path: Path) -> None:
    noise = encode(np.full(16_000, np.nan, np.float32), 16_000, "WAV", "FLOAT")
    write_shard(tmp_path / "bad.tar", [Stored(f"{number}", {"wav": noise}) for number in range(30)])
    with pytest.raises(
        DataError, match=r"bad.tar: sample '\d+': holds samples that .* \(16 samples in a row are unusab"
    ):
        make(tmp_path / "bad.tar").batch(0, 1)


@pytest.mark.parametrize("crop", [True, False])
def test_the_longest_recording_is_replaced_by_shorter_ones(tmp_path: Path, crop: bool) -> None:
    """One per batch: nothing is as long as the one that is above the cap."""
    samples = [Stored(f"{n}", {"flac": encode(speech(n, seconds))}) for n, seconds in enumerate((1.0, 1.2, 9.0))]
    write_shard(tmp_path / "long.tar", samples)
    config = AudioSourceConfig(
        min_seconds=0.5, max_seconds=2.0, batch_seconds=2.0, max_decoded_seconds=8.0, crop_to_shortest=crop
    )
    batches = epoch_of(make(tmp_path / "long.tar", config))
    ((line,),) = (batch.rejected for batch in batches if batch.rejected)
    assert line.endswith("sample '2': 9.0 s are more than the cap of 8.0 s (data.audio.max_decoded_seconds)")
    assert len(batches) == 3
    for batch in batches:
        (sample,) = batch.sample.tolist()
        assert batch.length == (16_000, 19_200)[sample]
        assert batch.padding is None


def test_an_index_that_promises_more_than_there_is_is_not_believed(folder: Path) -> None:
    for shard in sorted(folder.glob("*.tar")):
        index = read_index(shard)
        index.num_frames[::6] = 40_000
        write_index(shard, index)
    batches = epoch_of(make(folder))
    rejected = [line for batch in batches for line in batch.rejected]
    assert rejected
    assert all("is shorter than its index says; 'd2v shards index --force" in line for line in rejected)
    assert all(SECONDS[sample] * 16_000 >= batch.length - 1 for batch in batches for sample in batch.sample.tolist())
