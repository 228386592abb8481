"""``manifest.json``: what a checkpoint holds, in which file, with which checksum. No torch.

checkpoints/
    latest                       name of the newest complete checkpoint; moves last
    step-00001000/
        manifest.json            this module
        config.yaml              the run's whole configuration
        rank-00000.safetensors   what rank 0 owned: ``KIND/PARAMETER`` -> 1-D fp32 range of that parameter
        rank-00001.safetensors   ...
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.atomic import replacing
from pretrain.errors import RunError

FORMAT, VERSION = "data2vec-scale/checkpoint", 2
KINDS = ("student", "exp_avg", "exp_avg_sq", "teacher")
"""fp32 weights of the student, Adam's moments, and the teacher (which lacks some parameters)."""


Part = tuple[int, int, int]
"""Dimension along which a parameter is cut, first place, one beyond the last."""


@dataclass(frozen=True)
class FileRecord:
    """One rank's file."""

    name: str
    size_bytes: int
    sha256: str
    ranges: dict[str, tuple[int, int]]
    """``KIND/PARAMETER`` -> (start, stop) of the elements in it, counted in the flattened parameter or part."""
    parts: dict[str, Part] = field(default_factory=dict)
    """PARAMETER -> the part of it that tensor parallelism gave this rank; the others are whole."""


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's table of contents and the run's scalar state."""

    step: int
    """Optimizer updates made."""
    positions: dict[str, int]
    """Units consumed from the data stream of each modality."""
    adam_step: int
    """Updates that Adam's bias correction counts."""
    dp_size: int
    tp_size: int
    zero_stage: int
    shapes: dict[str, tuple[int, ...]]
    """Shape of every parameter of the student."""
    files: list[FileRecord]
    run_ids: dict[str, str] = field(default_factory=dict)
    """Ids under which trackers know the run."""
    versions: dict[str, str] = field(default_factory=dict)
    """Libraries that wrote it."""
    pp_size: int = 1

    def write(self, directory: Path) -> None:
        """Write ``manifest.json`` into ``directory``; raises DataError if that cannot be."""
        content = {"format": FORMAT, "version": VERSION, **vars(self), "files": [vars(record) for record in self.files]}
        with replacing(directory / "manifest.json") as stream:
            stream.write(json.dumps(content, separators=(",", ":")).encode() + b"\n")

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read ``manifest.json``.

        Raises:
            RunError: if it is missing, damaged, or of a format version that this release does not know.
        """
        path = directory / "manifest.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise RunError(f"{path}: not a data2vec-scale checkpoint")
            version = content.pop("version")
            if version != VERSION:
                raise RunError(
                    f"{path}: checkpoint format version {version}, this release reads version {VERSION}; "
                    f"use {'a newer' if version > VERSION else 'an older'} data2vec-scale"
                )
            files = [_record(item) for item in content.pop("files")]
            shapes = {name: tuple(shape) for name, shape in content.pop("shapes").items()}
            return cls(files=files, shapes=shapes, **content)
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}; is {directory} a complete checkpoint?") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"{path}: damaged manifest ({error}); use an earlier checkpoint") from error


def _record(item: dict[str, Any]) -> FileRecord:
    """A file's record as JSON holds it; tuples have become lists."""
    tuples = {name: {key: tuple(span) for key, span in item[name].items()} for name in ("ranges", "parts")}
    return FileRecord(**(item | tuples))


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damage(directory: Path, files: list[FileRecord]) -> str | None:
    """The first difference between files on disk and their records, or None if all are whole."""
    for record in files:
        path = directory / record.name
        try:
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != record.size_bytes:
                return f"{path} has {path.stat().st_size} bytes instead of {record.size_bytes}"
            if file_sha256(path) != record.sha256:
                return f"{path} does not match its checksum"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror or error}"
    return None
