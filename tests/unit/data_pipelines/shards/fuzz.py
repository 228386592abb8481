"""Seeded damage to one shard, and what the reader and ``verify`` make of it.

``python -m tests.unit.data_pipelines.shards.fuzz --trials 1000`` prints the table of docs/data-format.md.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.reader import Reader
from data_pipelines.shards.verify import verify_shard
from data_pipelines.shards.writer import Stored
from tests.unit.data_pipelines.photographs import write_shards

BLOCK = 4096


def one_bit(data: bytearray, generator: np.random.Generator) -> None:
    data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))


def truncated(data: bytearray, generator: np.random.Generator) -> None:
    del data[generator.integers(len(data)) :]


def zeroed_block(data: bytearray, generator: np.random.Generator) -> None:
    start = int(generator.integers(-(-len(data) // BLOCK))) * BLOCK
    data[start : start + BLOCK] = bytes(len(data[start : start + BLOCK]))


DAMAGES: dict[str, Callable[[bytearray, np.random.Generator], None]] = {
    "1 bit flipped": one_bit,
    "cut at a random byte": truncated,
    "4 KiB block zeroed": zeroed_block,
}


class Outcome(NamedTuple):
    """What happened to one damaged shard."""

    is_changed: bool
    """At least one byte differs."""
    num_payloads_changed: int
    """Samples whose stored bytes differ."""
    is_refused: bool
    """The reader does not open the shard."""
    num_wrong: int
    """Samples delivered with other bytes than were written."""
    num_rejected: int
    """Samples that the reader refused one by one."""
    is_verified: bool
    """``verify`` calls the shard whole."""
    num_verify_damaged: int
    """Samples that ``verify`` lists."""


def trial(shard: Path, original: bytes, samples: list[Stored], damaged: bytes) -> Outcome:
    """Put ``damaged`` in the place of a shard that held ``samples``, and look."""
    shard.write_bytes(damaged)
    verdict = verify_shard(shard)
    num_wrong = num_rejected = 0
    is_refused = False
    try:
        reader = Reader(str(shard))
    except DataError:
        is_refused = True
    else:
        for number, sample in enumerate(samples):
            try:
                read = reader.read(number)
            except DataError:
                num_rejected += 1
            else:
                num_wrong += (read.key, read.members) != (sample.key, sample.members)
        reader.close()
    return Outcome(
        is_changed=damaged != original,
        num_payloads_changed=sum(
            any(damaged[at : at + len(data)] != data for at, data in _payloads(original, sample)) for sample in samples
        ),
        is_refused=is_refused,
        num_wrong=num_wrong,
        num_rejected=num_rejected,
        is_verified=not verdict.problems,
        num_verify_damaged=verdict.num_damaged,
    )


def _payloads(original: bytes, sample: Stored) -> list[tuple[int, bytes]]:
    """Where a sample's members lie, found without the index: behind the header that names them."""
    places = []
    for extension, data in sample.members.items():
        header = original.index(f"{sample.key}.{extension}\0".encode())
        places.append((header + 512, data))
    return places


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="per kind of damage")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = write_shards(Path(folder), num_shards=1, samples_per_shard=40)
        shard = Path(folder, "shard-000000.tar")
        original = shard.read_bytes()
        for name, damage in DAMAGES.items():
            generator = np.random.default_rng(0)
            counts: Counter[str] = Counter()
            for _ in range(arguments.trials):
                data = bytearray(original)
                damage(data, generator)
                outcome = trial(shard, original, samples, bytes(data))
                counts["changed"] += outcome.is_changed
                counts["of these missed by verify"] += outcome.is_changed and outcome.is_verified
                counts["with changed samples"] += outcome.num_payloads_changed > 0
                counts["refused at opening"] += outcome.is_refused
                counts["samples damaged"] += outcome.num_payloads_changed
                counts["samples refused"] += outcome.num_rejected
                counts["wrong samples delivered"] += outcome.num_wrong
            print(f"{name}: {dict(counts)}")


if __name__ == "__main__":
    main()
