"""Image files, loose or in tar archives -> shards. The original bytes are kept, nothing is encoded again."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.jobs import Advance
from data_pipelines.prepare.cutting import check_source, cut, read_part, unique_keys
from data_pipelines.prepare.folder import Plan, Rejected
from data_pipelines.shards.tar import regular_members
from data_pipelines.shards.writer import Stored
from data_pipelines.transforms.image import check_image

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Found(NamedTuple):
    """A file in the source, before it gets a key."""

    name: str
    """For people: relative to the source; inside a tar as TAR:MEMBER."""
    parts: tuple[str, ...]
    """Path that the key is made from, class first."""
    class_name: str | None
    file: str
    offset: int
    size: int


class Candidate(NamedTuple):
    """A file that becomes a sample if it is a whole image."""

    key: str
    label: int
    """-1 for none."""
    name: str
    file: str
    offset: int
    size: int


def plan_images(source: Path, out: Path, *, shard_size_bytes: int, max_samples_per_shard: int, max_pixels: int) -> Plan:
    """What to write for the images of a source; nothing is decoded yet.

    Args:
        source: a folder of one folder per class (or of images without classes); a tar of the same; or a folder of
            tars, each of which is a class. Labels are positions in the sorted class names.
        out: the folder of shards.
        shard_size_bytes: a shard is closed before it grows beyond this (source bytes; one larger file still fits).
        max_samples_per_shard: and when it has so many.
        max_pixels: images with more will be rejected.
    Raises:
        DataError: if the source cannot be used.
    """
    check_source(source, out)
    try:
        found = _find(source)
    except OSError as error:
        raise DataError(f"{error.filename or source}: cannot be read: {error.strerror}") from error
    if not found:
        raise DataError(f"{source}: holds no images; put them into a folder for each class, or straight into it")
    classes = sorted({one.class_name for one in found if one.class_name is not None})
    candidates = _candidates(found, classes)
    options = f"shard size {shard_size_bytes}, {max_samples_per_shard} samples, {max_pixels} pixels"
    digest = hashlib.sha256(f"images 1: {options}".encode())
    for one in candidates:
        digest.update(f"\n{one.key!r} {one.label} {one.size} {one.name!r}".encode())
    return Plan(
        kind="images",
        made_from=f"{source} ({options})",
        fingerprint=digest.hexdigest(),
        classes=classes,
        shards=cut(
            candidates,
            [one.size for one in candidates],
            shard_size_bytes=shard_size_bytes,
            max_samples_per_shard=max_samples_per_shard,
        ),
        make=lambda some, advance: _samples(some, max_pixels, advance),
        unit="files",
    )


def _find(source: Path) -> list[Found]:
    """All files of a source in a fixed order."""
    if source.is_file():
        return _in_tars([source])
    tars = sorted(source.glob("*.tar"))
    compressed = [path for path in sorted(source.iterdir()) if path.name.endswith(_COMPRESSED)]
    if compressed:
        raise DataError(f"{compressed[0]}: compressed archives cannot be read at random; decompress it first")
    if tars:
        return _in_tars(tars)
    found = []
    for folder, folders, names in os.walk(source, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file():
                relative = path.relative_to(source)
                class_name = relative.parts[0] if len(relative.parts) > 1 else None
                size = path.stat().st_size
                found.append(Found(str(relative), relative.parts, class_name, str(path), 0, size))
    return found


def _in_tars(tars: Sequence[Path]) -> list[Found]:
    """Files in archives. Several archives are one class each; in a single one the folder of a file is its class."""
    found = []
    for path in tars:
        if path.name.endswith(_COMPRESSED):
            raise DataError(f"{path}: compressed archives cannot be read at random; decompress it first")
        with path.open("rb") as stream:
            for member in regular_members(path, stream):
                *folders, base = member.name.split("/")
                class_name = path.stem if len(tars) > 1 else next((one for one in folders[-1:] if one != "."), None)
                parts = (class_name, base) if class_name else (base,)
                name = f"{path.name}:{member.name}"
                found.append(Found(name, parts, class_name, str(path), member.offset_data, member.size))
    return sorted(found, key=lambda one: (one.class_name or "", one.name))


def _candidates(found: list[Found], classes: list[str]) -> list[Candidate]:
    """Give every file a label and a key of its own."""
    labels = {name: label for label, name in enumerate(classes)}
    candidates = []
    for key, one in zip(unique_keys(one.parts for one in found), found, strict=True):
        label = labels[one.class_name] if one.class_name is not None else -1
        candidates.append(Candidate(key, label, one.name, one.file, one.offset, one.size))
    return candidates


def _samples(some: Sequence[Candidate], max_pixels: int, advance: Advance) -> Iterator[Stored | Rejected]:
    for one in some:
        yield _sample(one, max_pixels)
        advance(1)


def _sample(one: Candidate, max_pixels: int) -> Stored | Rejected:
    try:
        data = read_part(one.file, one.offset, one.size)
        members = {check_image(data, max_pixels): data}
    except DataError as error:
        return Rejected(one.name, str(error))
    if one.label >= 0:
        members["cls"] = str(one.label).encode()
    return Stored(one.key, members)
