"""What ``d2v embed`` is given, as items with keys: files, folders of files, shards."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.reader import Reader
from data_pipelines.transforms.audio import audio_member
from data_pipelines.transforms.image import image_member
from data_pipelines.transforms.text import token_member

SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".webp"),
    "audio": (".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3"),
    "text": (".txt",),
}
"""Of the files that are taken from a folder; a file that is named itself may have any."""
_MEMBERS = {"image": image_member, "audio": audio_member, "text": token_member}


class Item(NamedTuple):
    """One thing to encode; its bytes are read when they are needed."""

    key: str
    """Path of a file, with ``:LINE`` where lines count; key of a sample."""
    read: Callable[[], bytes]
    """Raises DataError."""
    in_shard: bool
    """Whether a text is a block of token numbers already."""


def find_items(inputs: Sequence[str], modality: str, *, lines: bool) -> list[Item]:
    """All items in the order of the inputs; within a folder by name.

    Args:
        inputs: files, folders, and shards as ``DataConfig.path`` names them.
        modality: whose suffixes count in folders.
        lines: every line of a text file that is not blank is an item, numbered from 1.
    Raises:
        DataError: if an input does not exist, or holds nothing.
    """
    items = [item for name in inputs for item in _items(name, modality)]
    return [line for item in items for line in _lines(item)] if lines and modality == "text" else items


def _items(name: str, modality: str) -> list[Item]:
    path = Path(name)
    if name.endswith(".tar") or "{" in name or (path.is_dir() and any(path.glob("*.tar"))):
        return _samples(Reader(name), modality)
    if path.is_dir():
        found = sorted(file for file in _walk(path) if file.suffix.lower() in SUFFIXES[modality])
        if not found:
            raise DataError(f"{name}: holds no {modality} files ({', '.join(SUFFIXES[modality])}) and no shards")
        return [_file(file) for file in found]
    if not path.is_file():
        raise DataError(f"{name}: does not exist")
    return [_file(path)]


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent, name) for name in names)


def _file(path: Path) -> Item:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error

    return Item(str(path), read, in_shard=False)


def _samples(reader: Reader, modality: str) -> list[Item]:
    def sample(number: int) -> Item:
        return Item(reader.key(number), lambda: reader.read(number, _MEMBERS[modality]).content, in_shard=True)

    return [sample(number) for number in range(len(reader))]


def _lines(item: Item) -> list[Item]:
    if item.in_shard:
        return [item]
    rows = item.read().split(b"\n")
    return [
        Item(f"{item.key}:{number}", lambda row=row: row, in_shard=False)  # type: ignore[misc]
        for number, row in enumerate(rows, start=1)
        if row.strip()
    ]
