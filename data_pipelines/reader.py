"""Samples of indexed shards by number, in any order; nothing is delivered that fails its CRC."""

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import DataError
from data_pipelines.shards.index import ShardIndex, compact, read_index
from data_pipelines.shards.paths import expand_path

MAX_MEMBER_BYTES = 512 << 20
"""Several times what an image of 64 million pixels or 10 minutes of sound take."""
_MAX_OPEN_SHARDS = 128
"""Below the usual limit of 1024 open files per process."""


class Sample(NamedTuple):
    """One sample as stored."""

    key: str
    label: int | None
    members: dict[str, bytes]
    """Those that were read by extension, e.g. ``jpg`` and ``cls``."""

    @property
    def content(self) -> bytes:
        """Of the one member that was chosen."""
        (content,) = self.members.values()
        return content


class Reader:
    """Random access to the samples of a set of shards.

    Indices are arrays, so worker processes that are forked share them. Files are opened when first needed and read
    with ``pread``, so an inherited handle has no position that processes could disturb.
    """

    def __init__(self, path: str) -> None:
        """Read all indices.

        Args:
            path: as ``DataConfig.path``.
        Raises:
            DataError: if a shard or an index is missing, cut short or damaged, or if there is no sample.
        """
        self.path = path
        self.shards = expand_path(path)
        self._indices: list[ShardIndex] = [compact(read_index(shard)) for shard in self.shards]
        self._ends = np.cumsum([len(index) for index in self._indices])
        if len(self) == 0:
            raise DataError(f"{path}: holds 0 samples")
        self._handles: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def num_frames(self) -> NDArray[np.int64]:
        """(N,) length of each sample's recording, as ``ShardIndex.num_frames``."""
        return np.concatenate([index.num_frames for index in self._indices]).astype(np.int64)

    def sample_rates(self) -> NDArray[np.int64]:
        """(N,) hertz, of each sample's recording."""
        return np.concatenate([index.sample_rates for index in self._indices]).astype(np.int64)

    def read(self, sample: int, choose: Callable[[Collection[str]], str] | None = None) -> Sample:
        """One sample with its members, or with the one that is wanted: others cost nothing and may be damaged.

        Args:
            sample: its number.
            choose: extensions of its members -> that of the one to read; raises DataError if there is none.
        Raises:
            DataError: if a member cannot be read, is larger than ``MAX_MEMBER_BYTES`` or its CRC-32 is not that of the
                index; names shard and key.
        """
        shard, row = self._locate(sample)
        index = self._indices[shard]
        present = [extension for extension, column in index.columns.items() if column.offset[row] >= 0]
        try:
            wanted = present if choose is None else [choose(present)]
        except DataError as error:
            raise DataError(f"{self.describe(sample)}: {error}") from error
        label = int(index.labels[row])
        members = {extension: self._member(sample, extension) for extension in wanted}
        return Sample(index.key(row), label if label >= 0 else None, members)

    def _member(self, sample: int, extension: str) -> bytes:
        shard, row = self._locate(sample)
        column = self._indices[shard].columns[extension]
        size = int(column.size[row])
        if size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{self.describe(sample)}: member .{extension} has {size:,} bytes, {MAX_MEMBER_BYTES:,} are the most "
                "that is read"
            )
        data = self._pread(sample, shard, size, int(column.offset[row]))
        if zlib.crc32(data) != column.crc32[row]:
            raise DataError(f"{self.describe(sample)}: member .{extension} fails its CRC-32: damaged on disk")
        return data

    def key(self, sample: int) -> str:
        """Key of a sample; its members stay unread."""
        shard, row = self._locate(sample)
        return self._indices[shard].key(row)

    def describe(self, sample: int) -> str:
        """Shard and key of a sample, for messages."""
        shard, row = self._locate(sample)
        return f"{self.shards[shard]}: sample {self._indices[shard].key(row)!r}"

    def _locate(self, sample: int) -> tuple[int, int]:
        """Shard and row of a sample."""
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        return shard, sample - int(self._ends[shard] - len(self._indices[shard]))

    def _pread(self, sample: int, shard: int, size: int, offset: int) -> bytes:
        try:
            handle = self._handle(shard)
            parts = [os.pread(handle, size, offset)]
            while parts[-1] and (missing := size - sum(map(len, parts))):  # one call returns 2 GiB at most
                parts.append(os.pread(handle, missing, offset + size - missing))
        except OSError as error:
            raise DataError(f"{self.describe(sample)}: cannot be read: {error.strerror or error}") from error
        return b"".join(parts)

    def _handle(self, shard: int) -> int:
        if shard not in self._handles:
            if len(self._handles) == _MAX_OPEN_SHARDS:
                os.close(self._handles.popitem(last=False)[1])
            self._handles[shard] = os.open(self.shards[shard], os.O_RDONLY)
        self._handles.move_to_end(shard)
        return self._handles[shard]

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._handles:
            os.close(self._handles.popitem()[1])
