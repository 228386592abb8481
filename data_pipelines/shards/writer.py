"""Writing shards through webdataset: the same samples give the same bytes."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import webdataset

from data_pipelines.atomic import replacing
from data_pipelines.shards.index import ShardIndex, build_index, write_index


class Stored(NamedTuple):
    """A sample to be written."""

    key: str
    members: dict[str, bytes]
    """By extension."""


def write_shard(shard: Path, samples: Iterable[Stored]) -> ShardIndex:
    """Write a shard, read it back for its index, write that. The index appears last: a shard with one is finished.

    Raises:
        DataError: if a file cannot be written.
    """
    with (
        replacing(shard) as stream,
        webdataset.TarWriter(stream, user="", group="", mtime=0, encoder=False) as writer,  # else bytes vary by run
    ):
        for sample in samples:
            writer.write({"__key__": sample.key, **sample.members})
    index = build_index(shard)
    write_index(shard, index)
    return index
