"""Features as a file: ``.npz``, ``.safetensors`` or ``.parquet``."""

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import save

from data_pipelines.atomic import replacing
from deploy.embedding.encode import Embedded


def write(embedded: Embedded, path: Path, *, per_token: bool) -> None:
    """Write keys and features; per token also how many each item has, and their features one after the other.

    .npz            arrays ``keys`` (N,), ``features`` (N, D); per token (sum of ``lengths``, D) and ``lengths`` (N,)
    .safetensors    the same tensors; the keys are a JSON list in the metadata
    .parquet        columns ``key`` and ``features``, a list per item; per token a list of lists

    Raises:
        DataError: if it cannot be written.
    """
    writer = {".npz": _write_npz, ".safetensors": _write_safetensors, ".parquet": _write_parquet}[path.suffix]
    with replacing(path) as stream:
        writer(embedded, stream, per_token)
    path.chmod(0o644)


def _tensors(embedded: Embedded, per_token: bool) -> dict[str, torch.Tensor]:
    if not per_token:
        return {"features": torch.stack(embedded.features)}
    lengths = torch.tensor([len(row) for row in embedded.features])
    return {"features": torch.cat(embedded.features), "lengths": lengths}


def _write_npz(embedded: Embedded, stream: BinaryIO, per_token: bool) -> None:
    arrays = {name: tensor.numpy() for name, tensor in _tensors(embedded, per_token).items()}
    np.savez(stream, keys=np.array(embedded.keys), **arrays)  # type: ignore[arg-type]


def _write_safetensors(embedded: Embedded, stream: BinaryIO, per_token: bool) -> None:
    metadata = {"keys": json.dumps(embedded.keys, ensure_ascii=False)}
    stream.write(save(_tensors(embedded, per_token), metadata=metadata))


def _write_parquet(embedded: Embedded, stream: BinaryIO, per_token: bool) -> None:
    import pyarrow
    from pyarrow import parquet

    tensors = {name: tensor.numpy() for name, tensor in _tensors(embedded, per_token).items()}
    features = tensors["features"]
    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), features.shape[1])
    if per_token:
        ends = np.concatenate([[0], np.cumsum(tensors["lengths"])])
        rows = pyarrow.LargeListArray.from_arrays(pyarrow.array(ends), rows)
    parquet.write_table(pyarrow.table({"key": embedded.keys, "features": rows}), stream)
