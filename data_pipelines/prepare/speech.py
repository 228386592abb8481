"""Recordings -> shards, with their transcripts where there are some. The original bytes are kept."""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.jobs import Advance
from data_pipelines.prepare.cutting import check_source, cut, read_part, unique_keys
from data_pipelines.prepare.folder import Plan, Rejected
from data_pipelines.shards.index import ShardIndex
from data_pipelines.shards.writer import Stored
from data_pipelines.transforms.audio import check_audio

_MANIFEST = ".tsv"
_TRANSCRIPTS = "*.trans.txt"
_SUFFIXES = {
    *(".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aac", ".aif", ".aifc", ".aiff", ".amr", ".au", ".m4a", ".mp4", ".sph", ".webm", ".wma"),
}
"""What is taken for a recording; those of the second line will be rejected, one by one, rather than passed over."""


class Recording(NamedTuple):
    """A file that becomes a sample if it is a whole recording."""

    key: str
    name: str
    """For people: as the source names it."""
    file: str
    size: int
    transcript: str | None


def plan_speech(
    source: Path, out: Path, *, shard_size_bytes: int, max_samples_per_shard: int, max_seconds: float
) -> Plan:
    """What to write for the recordings of a source; nothing is decoded yet.

    Args:
        source: a folder, all of whose recordings at any depth are taken, with the transcripts that lie beside them in
            LibriSpeech's ``*.trans.txt`` (lines of ID and transcript, where ID.flac is the recording); or a manifest of
            fairseq: first line the root folder, then lines of path, tab, number of samples (which is not relied on).
        out: the folder of shards.
        shard_size_bytes: a shard is closed before it grows beyond this (source bytes; one larger file still fits).
        max_samples_per_shard: and when it has so many.
        max_seconds: longer recordings will be rejected.
    Raises:
        DataError: if the source cannot be used.
    """
    check_source(source, out)
    try:
        if source.is_dir():
            files = _in_tree(source)
        elif source.suffix == _MANIFEST:
            files = _in_manifest(source)
        else:
            raise DataError(f"{source}: is neither a folder of recordings nor a {_MANIFEST} manifest of fairseq")
        recordings = _recordings(files)
    except OSError as error:
        raise DataError(f"{error.filename or source}: cannot be read: {error.strerror}") from error
    if not recordings:
        raise DataError(f"{source}: holds no recordings (WAV, FLAC, OGG or MP3)")
    options = f"shard size {shard_size_bytes}, {max_samples_per_shard} samples, {max_seconds} s"
    digest = hashlib.sha256(f"speech 1: {options}".encode())
    for one in recordings:
        digest.update(f"\n{one.key!r} {one.size} {one.name!r} {one.transcript!r}".encode())
    return Plan(
        kind="speech",
        made_from=f"{source} ({options})",
        fingerprint=digest.hexdigest(),
        shards=cut(
            recordings,
            [one.size for one in recordings],
            shard_size_bytes=shard_size_bytes,
            max_samples_per_shard=max_samples_per_shard,
        ),
        make=lambda some, advance: _samples(some, max_seconds, advance),
        unit="files",
        measure=_measure,
    )


def _in_tree(source: Path) -> list[tuple[str, Path]]:
    """Names and paths of all recordings, in a fixed order."""
    files = []
    for folder, folders, names in os.walk(source, followlinks=True):
        folders.sort()
        paths = [Path(folder, name) for name in sorted(names)]
        files += [(str(path.relative_to(source)), path) for path in paths if path.suffix.lower() in _SUFFIXES]
    return files


def _in_manifest(source: Path) -> list[tuple[str, Path]]:
    """The same of what a manifest lists, in its order."""
    try:
        root, *lines = source.read_text(encoding="utf-8").splitlines() or [""]
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is not UTF-8 text, so no manifest of fairseq") from error
    if not root or not Path(root).is_dir():
        raise DataError(
            f"{source}: its first line names the root folder {root!r}, which does not exist; mend that line"
        )
    files = []
    for number, line in enumerate(lines, start=2):
        name, tab, _ = line.partition("\t")
        if not name or not tab:
            raise DataError(f"{source}: line {number}: is not PATH<tab>NUMBER OF SAMPLES")
        files.append((name, Path(root, name)))
    return files


def _recordings(files: Sequence[tuple[str, Path]]) -> list[Recording]:
    transcripts_in = functools.cache(_transcripts)
    keys = unique_keys(Path(name).parts for name, _ in files)
    return [
        Recording(key, name, str(path), _size(path), transcripts_in(path.parent).get(path.stem))
        for key, (name, path) in zip(keys, files, strict=True)
    ]


def _size(path: Path) -> int:
    """In bytes; 0 of a file that is missing, which will be found when it is to be read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _transcripts(folder: Path) -> dict[str, str]:
    """Transcripts of the recordings of a folder, by file name without suffix."""
    found = {}
    for path in sorted(folder.glob(_TRANSCRIPTS)):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is not UTF-8 text; mend or remove it") from error
        for line in filter(str.strip, lines):
            name, *transcript = line.split(maxsplit=1)
            found[name] = "".join(transcript).rstrip()
    return found


def _samples(some: Sequence[Recording], max_seconds: float, advance: Advance) -> Iterator[Stored | Rejected]:
    for one in some:
        yield _sample(one, max_seconds)
        advance(1)


def _sample(one: Recording, max_seconds: float) -> Stored | Rejected:
    try:
        data = read_part(one.file, 0, one.size)
        members = {check_audio(data, max_seconds): data}
    except DataError as error:
        return Rejected(one.name, str(error))
    if one.transcript is not None:
        members["txt"] = one.transcript.encode()
    return Stored(one.key, members)


def _measure(index: ShardIndex) -> dict[str, float]:
    rates = index.sample_rates[index.num_frames > 0]
    return {"seconds": float((index.num_frames[index.num_frames > 0] / rates).sum())}
