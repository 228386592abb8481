import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipelines.batches.base import Batch
from data_pipelines.errors import DataError
from data_pipelines.loader import Loader, build_loader, labelled_images
from data_pipelines.shards.index import read_index
from tests.unit.data_pipelines.conftest import Dataset
from tests.unit.data_pipelines.photographs import Masks, data_config, flip_bit, random_masks, write_shards

GLOBAL_BATCH_SIZE = 12


def one_rank(dataset: Dataset, num_workers: int, rank: int, num_ranks: int, **changes: Any) -> Loader:
    masking: Masks = changes.pop("masking", random_masks())
    position: int = changes.pop("position", 0)
    timeout_seconds: float = changes.pop("timeout_seconds", 0)
    num_microbatches = 2 if GLOBAL_BATCH_SIZE // num_ranks % 2 == 0 else 1
    loader = build_loader(
        data_config(dataset.folder, num_workers=num_workers, **changes),
        "image",
        seed=3,
        masking=masking,
        dp_rank=rank,
        dp_size=num_ranks,
        microbatch_size=GLOBAL_BATCH_SIZE // num_ranks // num_microbatches,
        num_microbatches=num_microbatches,
        timeout_seconds=timeout_seconds,
    )
    loader.start_at(position)
    return loader


def steps(dataset: Dataset, num_workers: int, num_ranks: int, num_steps: int, **changes: Any) -> list[Batch]:
    """Global batches, put together from all ranks."""
    loaders = [one_rank(dataset, num_workers, rank, num_ranks, **changes) for rank in range(num_ranks)]
    result = []
    for _ in range(num_steps):
        parts = [next(loader) for loader in loaders for _ in range(loader.num_microbatches)]
        result.append(
            Batch(
                modality="image",
                position=parts[0].position,
                source=torch.cat([part.source for part in parts]),
                mask=torch.cat([part.mask for part in parts]),
                num_kept=parts[0].num_kept,
                padding=None,
                sample=torch.cat([part.sample for part in parts]),
                epoch=torch.cat([part.epoch for part in parts]),
                rejected=tuple(line for part in parts for line in part.rejected),
            )
        )
    for loader in loaders:
        loader.close()
    return result


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for name in ("source", "mask", "sample", "epoch"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert (one.rejected, one.position) == (other.rejected, other.position)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_global_batches_are_the_same_on_any_number_of_ranks_and_workers(
    whole: Dataset, num_ranks: int, num_workers: int
) -> None:
    expected = steps(whole, 0, 1, 5)  # over the boundary of an epoch: 42 samples
    assert_same(steps(whole, num_workers, num_ranks, 5), expected)


def test_epochs_hold_every_sample_once(whole: Dataset) -> None:
    batches = steps(whole, 0, 2, 7)
    samples, epochs = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("sample", "epoch"))
    assert epochs.tolist() == [0] * 42 + [1] * 42
    for epoch in (0, 1):
        assert samples[epochs == epoch].sort().values.tolist() == list(range(42))


def test_epochs_augment_and_mask_anew(whole: Dataset) -> None:
    batches = steps(whole, 0, 1, 7)
    source, mask, sample = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("source", "mask", "sample")
    )
    first, second = sample[:42].argsort(), 42 + sample[42:].argsort()
    assert (source[first] - source[second]).flatten(1).abs().amax(1).min() > 0.05
    assert (mask[first] != mask[second]).flatten(1).any(1).float().mean() > 0.99


def test_shapes_and_types(whole: Dataset) -> None:
    (batch,) = steps(whole, 1, 1, 1)
    assert (batch.source.shape, batch.source.dtype) == ((12, 3, 32, 32), torch.float32)
    assert (batch.mask.shape, batch.mask.dtype, batch.num_kept) == ((12, 2, 9), torch.bool, 5)
    assert (batch.sample.shape, batch.sample.dtype, batch.epoch.dtype) == ((12,), torch.int64, torch.int64)
    moved = batch.to(torch.device("meta"))
    assert (moved.source.device.type, moved.epoch.device.type, moved.modality) == ("meta", "meta", "image")


@pytest.mark.parametrize("done", [1, 3, 4, 6])
@pytest.mark.parametrize(("num_workers", "num_ranks"), [(0, 1), (2, 1), (0, 3), (1, 2)])
def test_any_layout_goes_on_where_another_stopped(whole: Dataset, done: int, num_workers: int, num_ranks: int) -> None:
    unbroken = steps(whole, 0, 1, 8)
    resumed = steps(whole, num_workers, num_ranks, 8 - done, position=done * GLOBAL_BATCH_SIZE)
    assert_same(resumed, unbroken[done:])


def test_workers_that_hang_are_given_up(whole: Dataset) -> None:
    def masks(_: int) -> Tensor:
        time.sleep(0.4)  # for each of the six samples of a batch
        return torch.zeros(1, 4, dtype=torch.bool)

    loader = one_rank(whole, 1, 0, 1, masking=Masks(masks), timeout_seconds=0.5)
    with pytest.raises(DataError, match=r"no data worker process has had its batch ready for 0.5 s: .*timeout_seconds"):
        next(loader)
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_global_random_state_is_touched(whole: Dataset, num_workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    loader = one_rank(whole, num_workers, 0, 1)
    next(loader)
    loader.close()
    list(labelled_images(data_config("", num_workers=num_workers), str(whole.folder), 20))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_close_ends_the_workers(whole: Dataset) -> None:
    pids: set[int] = set()

    def masks(key: int) -> Tensor:
        return torch.tensor([[bool(os.getpid() >> bit & 1) for bit in range(32)]])

    loader = one_rank(whole, 2, 0, 1, masking=Masks(masks))
    for _ in range(4):
        bits = next(loader).mask[0, 0]
        pids.add(sum(1 << bit for bit in range(32) if bits[bit]))
    assert len(pids) == 2 and os.getpid() not in pids
    loader.close()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert loader.wait_seconds > 0


def damage(dataset: Dataset, sample: int) -> None:
    shard = dataset.folder / f"shard-{sample // 14:06d}.tar"
    flip_bit(shard, int(read_index(shard).columns["jpg"].offset[sample % 14]) + 20)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_sample_stops_the_run_with_one_line(dataset: Dataset, num_workers: int) -> None:
    damage(dataset, 17)
    with pytest.raises(DataError) as caught:
        steps(dataset, num_workers, 1, 4)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    for part in ("shard-000001.tar", "'flower/017'", "CRC-32", "d2v shards verify", "data.max_bad_samples is 0"):
        assert part in message


def test_bad_samples_within_the_budget_are_replaced_and_reported(dataset: Dataset) -> None:
    for sample in (5, 17):
        damage(dataset, sample)
    expected = steps(dataset, 0, 1, 7, max_bad_samples=2)  # two epochs: each bad sample counts once
    samples, epochs = (torch.cat([getattr(batch, name) for batch in expected]) for name in ("sample", "epoch"))
    rejected = [line for batch in expected for line in batch.rejected]
    assert not set(samples.tolist()) & {5, 17}
    assert len(set(samples[epochs == 0].tolist())) == 40
    assert len(rejected) >= 4 and len(set(rejected)) == 2
    for num_workers, num_ranks in ((2, 1), (0, 3), (1, 4)):
        assert_same(steps(dataset, num_workers, num_ranks, 7, max_bad_samples=2), expected)
    with pytest.raises(DataError, match="unusable sample number 2, data.max_bad_samples is 1"):
        steps(dataset, 0, 1, 7, max_bad_samples=1)


def test_what_is_no_image_is_named(dataset: Dataset) -> None:
    from data_pipelines.shards.writer import Stored, write_shard

    samples = [Stored("text", {"jpg": b"not an image"}), *dataset.samples[1:14]]
    write_shard(dataset.folder / "shard-000000.tar", samples)
    with pytest.raises(DataError, match=r"shard-000000.tar: sample 'text': not a JPEG, PNG or WebP image"):
        steps(dataset, 0, 1, 4)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_if_everything_is_bad_the_loader_gives_up(dataset: Dataset, num_workers: int) -> None:
    for sample in range(42):
        damage(dataset, sample)
    with pytest.raises(DataError, match=r"fails its CRC-32.*\(16 samples in a row are unusable\)$") as caught:
        steps(dataset, num_workers, 1, 1, max_bad_samples=1000)
    assert "\n" not in str(caught.value)  # torch would send a traceback from a worker


def test_a_dead_worker_is_one_line(whole: Dataset) -> None:
    def die(_: int) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(DataError, match=r"^a data worker process died .*data.num_workers"):
        steps(whole, 1, 1, 1, masking=Masks(die))


def test_programming_errors_keep_their_traceback(whole: Dataset) -> None:
    def broken(_: int) -> Tensor:
        raise ZeroDivisionError("in the mask function")

    with pytest.raises(ZeroDivisionError, match="in the mask function"):
        steps(whole, 1, 1, 1, masking=Masks(broken))


def test_a_program_ends_though_a_loader_was_left_open(whole: Dataset) -> None:
    program = f"""
from data_pipelines.loader import build_loader
from tests.unit.data_pipelines.photographs import data_config, random_masks
loader = build_loader(
    data_config({str(whole.folder)!r}, num_workers=2), "image", seed=0, masking=random_masks(),
    dp_rank=0, dp_size=1, microbatch_size=4, num_microbatches=1,
)
next(loader)
raise SystemExit("no close()")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr.strip()) == (1, "no close()")


def test_signals_to_the_process_group_do_not_end_workers(whole: Dataset) -> None:
    def masks(_: int) -> Tensor:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        return torch.zeros(1, 4, dtype=torch.bool)

    assert len(steps(whole, 1, 1, 2, masking=Masks(masks))) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labelled_images_give_every_sample_once_in_order(whole: Dataset, num_workers: int) -> None:
    batches = list(labelled_images(data_config("", num_workers=num_workers), str(whole.folder), 20))
    assert [len(images) for images, _ in batches] == [20, 20, 2]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert (images.shape, images.dtype, labels.dtype) == ((42, 3, 32, 32), torch.float32, torch.int64)
    assert labels.tolist() == [number % 2 for number in range(42)]
    again = torch.cat([images for images, _ in labelled_images(data_config(""), str(whole.folder), 7)])
    assert torch.equal(images, again)


def test_evaluation_needs_labels_and_whole_samples(dataset: Dataset) -> None:
    from data_pipelines.shards.writer import write_shard

    damage(dataset, 17)
    with pytest.raises(DataError, match="'flower/017': member .jpg fails its CRC-32"):
        list(labelled_images(data_config("", num_workers=1), str(dataset.folder), 20))
    sample = dataset.samples[0]
    write_shard(dataset.folder / "shard-000000.tar", [sample._replace(members={"jpg": sample.members["jpg"]})])
    with pytest.raises(DataError, match=r"shard-000000.tar: sample 'china/000': carries no label"):
        list(labelled_images(data_config(""), str(dataset.folder), 20))


def test_unusable_shards_are_found_when_the_loader_is_built(whole: Dataset, tmp_path: Any) -> None:
    write_shards(tmp_path / "cut", num_shards=2)
    os.truncate(tmp_path / "cut" / "shard-000001.tar", 5000)
    with pytest.raises(DataError, match="shard-000001.tar: has 5,000 bytes"):
        one_rank(Dataset(tmp_path / "cut", []), 2, 0, 1)
