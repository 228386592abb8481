"""Comparing every byte of a shard with its index."""

from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.shards.index import ShardIndex, build_index, checksums, read_index_alone


class Verdict(NamedTuple):
    """What was found in one shard."""

    num_samples: int
    """As the index says; 0 without a readable index."""
    num_damaged: int
    """Samples with a member that fails its CRC-32; the reader refuses them."""
    problems: list[str]
    """One line for each damaged member or other difference; empty if the shard is whole."""


def verify_shard(shard: Path) -> Verdict:
    """Read a whole shard: members, headers, padding, end mark, size. Never raises for what it finds on disk."""
    try:
        index = read_index_alone(shard)
        with shard.open("rb") as stream:
            crcs, frame_crc32 = checksums(stream, [(column.offset, column.size) for column in index.columns.values()])
            size = stream.seek(0, 2)
    except DataError as error:
        return Verdict(0, 0, [str(error)])
    except OSError as error:
        return Verdict(0, 0, [f"{shard}: cannot be read: {error.strerror or error}"])
    problems = []
    if size != index.shard_size_bytes:
        problems.append(f"{shard}: has {size:,} bytes, its index says {index.shard_size_bytes:,}")
    damaged: set[int] = set()
    for (extension, column), found in zip(index.columns.items(), crcs, strict=True):
        for row in ((column.offset >= 0) & (column.crc32 != found)).nonzero()[0]:
            damaged.add(int(row))
            problems.append(f"{shard}: sample {index.key(row)!r}: member .{extension} fails its CRC-32")
    if frame_crc32 != index.frame_crc32 and size == index.shard_size_bytes:
        problems.append(_frame_problem(shard, index))
    return Verdict(len(index), len(damaged), problems)


def _frame_problem(shard: Path, index: ShardIndex) -> str:
    """What is wrong outside of the members: our reader does not mind, stock webdataset may."""
    try:
        rebuilt = build_index(shard)
    except DataError as error:
        return str(error)
    same = len(rebuilt) == len(index) and (rebuilt.keys == index.keys).all()
    what = "harmless bytes of headers or padding" if same else "tar headers"
    return f"{shard}: {what} differ from when the index was made"
