from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.reader import Reader
from data_pipelines.shards.index import index_path
from data_pipelines.shards.verify import verify_shard
from tests.unit.data_pipelines.conftest import Dataset
from tests.unit.data_pipelines.photographs import write_shards
from tests.unit.data_pipelines.shards.fuzz import DAMAGES, trial

NUM_TRIALS = 120


@pytest.mark.parametrize("kind", DAMAGES)
def test_no_damage_is_delivered_and_none_is_missed(kind: str, tmp_path: Path) -> None:
    samples = write_shards(tmp_path, num_shards=1, samples_per_shard=20)
    shard = tmp_path / "shard-000000.tar"
    original = shard.read_bytes()
    generator = np.random.default_rng(7)
    num_harmful = 0
    for _ in range(NUM_TRIALS):
        data = bytearray(original)
        DAMAGES[kind](data, generator)
        outcome = trial(shard, original, samples, bytes(data))
        assert outcome.num_wrong == 0
        assert outcome.is_verified == (not outcome.is_changed)
        assert outcome.num_verify_damaged == outcome.num_payloads_changed
        assert outcome.is_refused == (len(data) != len(original))
        if not outcome.is_refused:
            assert outcome.num_rejected == outcome.num_payloads_changed
        num_harmful += outcome.is_changed and outcome.num_payloads_changed > 0
    assert num_harmful > NUM_TRIALS // 4  # else nothing was tested


def test_an_empty_shard_file_is_refused(dataset: Dataset) -> None:
    shard = dataset.folder / "shard-000001.tar"
    shard.write_bytes(b"")
    with pytest.raises(DataError, match=r"shard-000001.tar: has 0 bytes, its index says [\d,]+: cut short"):
        Reader(str(dataset.folder))
    assert verify_shard(shard).num_damaged == 14


@pytest.mark.parametrize("with_index", [False, True])
def test_swapped_shards_deliver_nothing_wrong(dataset: Dataset, with_index: bool) -> None:
    first, second = (dataset.folder / f"shard-00000{number}.tar" for number in (0, 1))
    pairs = [(first, second), (index_path(first), index_path(second))]
    for one, other in pairs if with_index else pairs[:1]:
        keep = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(keep)
    if with_index:  # only renamed, so whole
        reader = Reader(str(dataset.folder))
        assert [reader.read(number).key for number in range(28)] == [
            sample.key for sample in dataset.samples[14:28] + dataset.samples[:14]
        ]
        return
    assert verify_shard(first).num_damaged > 0
    with pytest.raises(DataError):
        reader = Reader(str(dataset.folder))  # refuses at once where the sizes differ
        for number in range(14):
            reader.read(number)
