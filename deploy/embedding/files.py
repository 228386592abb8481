"""Features as a file: ``.npz``, ``.safetensors`` or ``.parquet``, written piece by piece."""

import json
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_pipelines.atomic import replacing
from data_pipelines.errors import DataError
from deploy.embedding.rows import Rows

_MAX_HEADER = 100_000_000
"""Bytes: readers of safetensors refuse a longer one."""
_KEYS_AT_ONCE = 65_536
_TYPES = {"lengths": "<i8", "features": "<f4"}
_SAFETENSORS_TYPES = {"lengths": "I64", "features": "F32"}


@contextmanager
def writing(path: Path, *, per_token: bool) -> Iterator[Rows]:
    """Yield rows to add to; the file appears, whole, when the block ends well.

    Until then they lie in a file without a name in the same folder, which is gone however the process ends.

    .npz            arrays ``keys`` (N,), ``features`` (N, D); per token (sum of ``lengths``, D) and ``lengths`` (N,)
    .safetensors    the same tensors; the keys are a JSON list in the metadata
    .parquet        columns ``key`` and ``features``, a list per item; per token a list of lists

    Args:
        path: ends in one of these.
        per_token: whether every item has several vectors.
    Raises:
        DataError: if it cannot be written.
    """
    write = {".npz": _write_npz, ".safetensors": _write_safetensors, ".parquet": _write_parquet}[path.suffix]
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            rows = Rows(file, per_token=per_token)
            yield rows
            with replacing(path) as stream:
                write(rows, stream)
        path.chmod(0o644)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def require_room(path: Path, keys: Iterable[str]) -> None:
    """Before the work is done, raise DataError if a file cannot hold the keys of all items."""
    if path.suffix == ".safetensors" and sum(len(_quoted(_quoted([key])).encode()) for key in keys) > _MAX_HEADER:
        raise DataError(f"{path}: a header of safetensors holds {_MAX_HEADER:,} bytes of keys; take .npz or .parquet")


def _shapes(rows: Rows) -> dict[str, tuple[int, ...]]:
    lengths: dict[str, tuple[int, ...]] = {"lengths": (len(rows),)} if rows.per_token else {}
    return lengths | {"features": (rows.num_vectors, rows.width)}


def _write_npz(rows: Rows, stream: BinaryIO) -> None:
    width = max(map(len, rows.keys))
    parts = [rows.keys[start : start + _KEYS_AT_ONCE] for start in range(0, len(rows), _KEYS_AT_ONCE)]
    keys = (np.array(part, f"<U{width}") for part in parts)
    with zipfile.ZipFile(stream, "w") as archive:
        _add_array(archive, "keys", f"<U{width}", (len(rows),), keys)
        for name, shape in _shapes(rows).items():
            _add_array(archive, name, _TYPES[name], shape, _content(rows, name))


def _content(rows: Rows, name: str) -> Iterable[np.ndarray]:
    return [np.array(rows.lengths)] if name == "lengths" else (piece.features for piece in rows.pieces())


def _add_array(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], parts: Iterable[np.ndarray]
) -> None:
    """As ``numpy.savez`` does, for an array that is never whole in memory."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(part.tobytes())


def _write_safetensors(rows: Rows, stream: BinaryIO) -> None:
    """Length of the header, header, tensors: https://github.com/huggingface/safetensors#format."""
    header: dict[str, object] = {"__metadata__": {"keys": _quoted(rows.keys)}}
    end = 0
    for name, shape in _shapes(rows).items():
        start, end = end, end + np.dtype(_TYPES[name]).itemsize * int(np.prod(shape))
        header[name] = {"dtype": _SAFETENSORS_TYPES[name], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of their size
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in _shapes(rows):
        for part in _content(rows, name):
            stream.write(part.tobytes())


def _quoted(content: str | Sequence[str]) -> str:
    return json.dumps(content, ensure_ascii=False)


def _write_parquet(rows: Rows, stream: BinaryIO) -> None:
    """One group of rows per piece."""
    import pyarrow
    from pyarrow import parquet

    kind = pyarrow.list_(pyarrow.float32(), rows.width)
    schema = pyarrow.schema({"key": pyarrow.string(), "features": pyarrow.large_list(kind) if rows.per_token else kind})
    with parquet.ParquetWriter(stream, schema) as writer:
        for piece in rows.pieces():
            features = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(piece.features.reshape(-1)), rows.width)
            if rows.per_token:
                ends = np.concatenate([[0], np.cumsum(piece.lengths)])
                features = pyarrow.LargeListArray.from_arrays(pyarrow.array(ends), features)
            writer.write_table(pyarrow.table([piece.keys, features], schema=schema))
