"""``dataset.json`` in a folder that ``d2v prepare`` writes: what it is made from, and whether it is all there."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_pipelines.atomic import replacing
from data_pipelines.errors import DataError

NAME = "dataset.json"
CLASSES = "classes.json"
REJECTED = "rejected.jsonl"


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """A prepared folder; the counts are those of the end result and 0 until ``complete``."""

    kind: str
    """``images``, ``digits``, ``speech`` or ``text``."""
    made_from: str
    """Source and options in words, for people."""
    fingerprint: str
    """SHA-256 of the options and of the sources' names, sizes and labels: as long as no source changes within its size,
    two folders with the same one hold the same bytes."""
    shards: list[str]
    """File names in order."""
    complete: bool = False
    num_samples: int = 0
    num_classes: int = 0
    num_rejected: int = 0
    size_bytes: int = 0
    """Of all shards together."""
    amounts: dict[str, float] = field(default_factory=dict)
    """What else there is in all shards together: ``seconds`` of speech, ``tokens`` of text."""

    def write(self, folder: Path) -> None:
        """Write it atomically.

        Raises:
            DataError: if it cannot be written.
        """
        with replacing(folder / NAME) as stream:
            stream.write((json.dumps(asdict(self), indent=1) + "\n").encode())


def read_manifest(folder: Path) -> DatasetManifest | None:
    """The manifest of a folder; None if it has none, as folders that others wrote.

    Raises:
        DataError: if it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return DatasetManifest(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); prepare the folder anew") from error


def check_complete(folder: Path, shards: list[Path]) -> None:
    """See that a prepared folder is finished and that none of its shards was lost.

    Raises:
        DataError: if not; names the shard and the fix.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    if not manifest.complete:
        raise DataError(f"{folder}: is half prepared; run the same 'd2v prepare {manifest.kind}' again to finish it")
    missing = sorted(set(manifest.shards) - {shard.name for shard in shards})
    if missing:
        raise DataError(f"{folder / missing[0]}: shard is missing (listed in {NAME}); restore or prepare it again")


def write_classes(folder: Path, classes: list[str]) -> None:
    """Write the class names in the order of their labels.

    Raises:
        DataError: if the file cannot be written.
    """
    with replacing(folder / CLASSES) as stream:
        stream.write((json.dumps(classes, indent=1) + "\n").encode())


def read_classes(folder: Path) -> dict[int, str]:
    """Class names by label, as far as a folder tells them."""
    try:
        return dict(enumerate(map(str, json.loads((folder / CLASSES).read_text(encoding="utf-8")))))
    except (OSError, ValueError, TypeError):
        return {}
