import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipelines.batches.base import MASK, SUBSTITUTE, Batch
from data_pipelines.batches.text import TextBatches
from data_pipelines.config import TextSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.order import sample_at, stream_key
from data_pipelines.prepare.folder import Plan, write_folder
from data_pipelines.reader import Reader
from data_pipelines.shards.index import ShardIndex, read_index
from data_pipelines.shards.writer import Stored
from data_pipelines.tokenizers.base import Tokenizer
from data_pipelines.tokenizers.sentencepiece_model import train_sentencepiece
from data_pipelines.transforms.text import pack_tokens
from tests.unit.data_pipelines.photographs import flip_bit, write_shards

LENGTH = 16
NUM_BLOCKS = 23
CONFIG = TextSourceConfig(tokens_per_sample=LENGTH)


class RandomMasks:
    """Half of the tokens of each of two views; of the given lengths."""

    def num_tokens(self, length: int) -> int:
        return length

    def masks(self, keys: Sequence[int], lengths: Sequence[int], padded_length: int | None = None) -> Tensor:
        assert len(keys) == len(lengths)
        longest = padded_length or max(lengths)
        rows = [torch.rand(2, longest, generator=torch.Generator().manual_seed(key)) for key in keys]
        return torch.stack(rows).argsort(dim=-1) < longest // 2


class SpanMasks(RandomMasks):
    """One span at the end of every block, as the lengths that it is told say."""

    def masks(self, keys: Sequence[int], lengths: Sequence[int], padded_length: int | None = None) -> Tensor:
        places, ends = torch.arange(padded_length or max(lengths)), torch.tensor(lengths)[:, None, None]
        return (places < ends) & (places >= ends - 3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_sentencepiece(["a few words of a text, and a few more"], 276)


def block(number: int, length: int = LENGTH) -> list[int]:
    return [0, *np.random.default_rng(number).integers(4, 276, length - 1).tolist()]


def write(folder: Path, tokenizer: Tokenizer | None, blocks: Sequence[Sequence[int]]) -> Path:
    """Blocks in shards of nine, as ``d2v prepare text`` writes them."""

    def tokens(index: ShardIndex) -> dict[str, float]:
        return {"tokens": float(((index.columns["npy"].size - 128) // 2).sum())}

    numbers = range(len(blocks))
    plan = Plan(
        kind="text",
        made_from="a test",
        fingerprint=hashlib.sha256(repr(blocks).encode()).hexdigest(),
        files={} if tokenizer is None else tokenizer.files,
        shards=[numbers[start : start + 9] for start in range(0, len(blocks), 9)],
        make=lambda some, advance: (Stored(f"{one:06d}", {"npy": pack_tokens(blocks[one], 276)}) for one in some),
        unit="blocks",
        measure=tokens,
    )
    write_folder(plan, folder, num_workers=1, report=lambda done: None)
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return write(tmp_path / "shards", tokenizer, [block(number) for number in range(NUM_BLOCKS)])


def make(folder: Path, config: TextSourceConfig = CONFIG, seed: int = 5) -> TextBatches:
    return TextBatches(Reader(str(folder)), config, seed, RandomMasks())


def assert_same(one: Batch, other: Batch) -> None:
    for name in ("source", "mask", "sample", "epoch"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (one.position, one.num_kept, one.rejected) == (other.position, other.num_kept, other.rejected)


def test_a_batch_holds_the_blocks_at_its_positions_with_masks_of_their_keys(folder: Path) -> None:
    batch = make(folder).batch(20, 6)
    epochs, samples = sample_at(5, np.arange(20, 26), NUM_BLOCKS)
    assert set(epochs) == {0, 1}
    assert (batch.modality, batch.position, batch.rejected, batch.padding) == ("text", 20, (), None)
    assert torch.equal(batch.source, torch.tensor([block(sample) for sample in samples.tolist()]))
    assert (batch.source.dtype, batch.length) == (torch.int64, LENGTH)
    assert (batch.sample.tolist(), batch.epoch.tolist()) == (samples.tolist(), epochs.tolist())
    keys = [stream_key(5, MASK, epoch, sample) for epoch, sample in zip(epochs.tolist(), samples.tolist(), strict=True)]
    assert torch.equal(batch.mask, RandomMasks().masks(keys, [LENGTH] * 6))
    assert batch.num_kept == LENGTH // 2


def test_a_batch_is_the_same_however_the_stream_is_cut(folder: Path) -> None:
    whole = make(folder).batch(30, 8)
    first, second = make(folder).batch(30, 3), make(folder).batch(33, 5)
    for name in ("source", "mask", "sample", "epoch"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(first, name), getattr(second, name)]))
    assert_same(make(folder).batch(30, 8), whole)
    assert not torch.equal(make(folder, seed=6).batch(30, 8).sample, whole.sample)


def test_an_epoch_holds_every_block_once_with_other_masks_in_the_next(folder: Path) -> None:
    first, second = make(folder).batch(0, NUM_BLOCKS), make(folder).batch(NUM_BLOCKS, NUM_BLOCKS)
    assert sorted(first.sample.tolist()) == sorted(second.sample.tolist()) == list(range(NUM_BLOCKS))
    masks = [batch.mask[batch.sample.argsort()] for batch in (first, second)]
    assert not (masks[0] == masks[1]).all(dim=-1).any()


def test_a_short_block_is_padded_to_the_whole_length(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = write(tmp_path / "shards", tokenizer, [block(0, 5), block(1, LENGTH)])
    batch = make(folder).batch(0, 2)
    short = batch.sample.tolist().index(0)
    assert batch.source[short].tolist() == block(0, 5) + [1] * (LENGTH - 5)
    assert batch.padding is not None
    assert batch.padding[short].tolist() == [False] * 5 + [True] * (LENGTH - 5)
    assert not batch.padding[1 - short].any()
    assert batch.mask.shape == (2, 2, LENGTH)
    alone = make(folder).batch(batch.sample.tolist().index(1), 1)
    assert alone.padding is None


def test_spans_stop_where_a_block_ends(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = write(tmp_path / "shards", tokenizer, [block(0, 5), block(1, LENGTH)])
    batch = TextBatches(Reader(str(folder)), CONFIG, 5, SpanMasks()).batch(0, 2)
    assert batch.padding is not None and not (batch.mask[:, 0] & batch.padding).any()
    assert batch.mask.shape == (2, 1, LENGTH) and batch.num_kept == LENGTH - 3


def test_a_block_that_is_too_long_is_refused_with_the_fix(folder: Path) -> None:
    message = (
        r"shard-00000\d.tar: sample '0000\d\d': a block of 16 tokens is longer than data.text.tokens_per_sample, 8; "
        r"set that to 16, or prepare the text again with --tokens-per-sample 8 \(16 samples in a row are unusable\)$"
    )
    with pytest.raises(DataError, match=message):
        make(folder, TextSourceConfig(tokens_per_sample=8)).batch(0, 1)


def test_shards_of_shorter_blocks_are_refused_with_the_fix(folder: Path) -> None:
    message = (
        r"^data.text.tokens_per_sample: is 64, but blocks in .*shards have 18 tokens at most; set it to theirs, "
        r"or prepare the text again with --tokens-per-sample 64$"  # 16, but a short one in each shard could hide 18
    )
    with pytest.raises(DataError, match=message):
        make(folder, TextSourceConfig(tokens_per_sample=64))
    make(folder, TextSourceConfig(tokens_per_sample=18))


def test_blocks_of_another_vocabulary_are_unusable(tmp_path: Path, tokenizer: Tokenizer) -> None:
    blocks = [block(number) for number in range(9)]
    blocks[3][7] = 276
    folder = write(tmp_path / "shards", tokenizer, blocks)
    (reason,) = make(folder).batch(0, 9).rejected
    assert reason.endswith("sample '000003': token number 276 is outside of the vocabulary of 276")
    without = write(tmp_path / "without", None, blocks)  # as shards that others wrote
    assert make(without).batch(0, 9).rejected == ()


def test_a_damaged_block_is_replaced_by_one_of_its_substitutes(folder: Path) -> None:
    whole = make(folder).batch(0, NUM_BLOCKS)
    index = read_index(folder / "shard-000001.tar")
    flip_bit(folder / "shard-000001.tar", int(index.columns["npy"].offset[4]) + 140)
    batch = make(folder).batch(0, NUM_BLOCKS)
    assert (
        len(batch.rejected) == 1
        and "shard-000001.tar: sample '000013': member .npy fails its CRC-32" in batch.rejected[0]
    )
    place = whole.sample.tolist().index(13)
    substitute = stream_key(5, SUBSTITUTE, 0, 13, 0) % NUM_BLOCKS
    assert batch.sample[place] == substitute
    assert batch.source[place].tolist() == block(substitute)
    others = torch.arange(NUM_BLOCKS) != place
    assert torch.equal(batch.source[others], whole.source[others])
    assert torch.equal(batch.mask[others], whole.mask[others])


def test_a_damaged_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"")
    with pytest.raises(DataError, match="tokenizer.model: not a sentencepiece model$"):
        make(folder)


def test_images_are_no_text(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", num_shards=1)
    with pytest.raises(DataError, match=r"has no text member \(.npy\), only .cls, .jpg \(16 samples in a row"):
        make(tmp_path / "shards").batch(0, 1)
