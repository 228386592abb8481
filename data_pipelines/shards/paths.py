"""What ``data.path`` may say, and the shards that it names."""

import re
from pathlib import Path

import braceexpand

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import check_complete

_URL = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")


def folder_of(path: str) -> Path:
    """The folder in which the shards of a ``data.path`` lie, and their tokenizer beside them."""
    place = Path(path)
    return place if place.is_dir() else place.parent


def expand_path(path: str) -> list[Path]:
    """Shards in reading order.

    Args:
        path: a folder (all its .tar files by name), one .tar, or a brace range such as
            ``train/shard-{000000..000146}.tar``.
    Raises:
        DataError: if the path is empty, a URL or a command, or names a shard that does not exist.
    """
    if not path:
        raise DataError("data.path: is empty; give it a folder of shards, one .tar, or a brace range of them")
    if _URL.match(path):
        raise DataError(f"data.path: {path!r} is a URL or a command; only local files are read (mount or copy them)")
    folder = Path(path)
    if folder.is_dir():
        shards = sorted(folder.glob("*.tar"))
        if not shards:
            raise DataError(f"{folder}: holds no .tar shards; 'd2v prepare' makes them")
        check_complete(folder, shards)
        return shards
    try:
        shards = [Path(one) for one in braceexpand.braceexpand(path)]
    except ValueError as error:
        raise DataError(f"data.path: {path!r}: {error}") from error
    for shard in shards:
        if not shard.is_file():
            if len(shards) > 1:
                raise DataError(f"{shard}: shard is missing (named by {path})")
            raise DataError(f"{shard}: there is no such folder of shards or .tar; 'd2v prepare' makes them")
    return shards
