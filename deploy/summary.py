"""What a prepared folder holds, in words."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.progress import counted, readable_bytes

if TYPE_CHECKING:
    from data_pipelines.shards.manifest import DatasetManifest

_MAX_REASONS = 10


def summary(out: Path, manifest: "DatasetManifest") -> str:
    """Some lines about a complete folder: how much there is, and what was rejected for which reasons."""
    parts = [counted(manifest.num_samples, "sample"), *readable_amounts(manifest.amounts)]
    if manifest.num_classes:
        parts.append(counted(manifest.num_classes, "class"))
    elif manifest.kind in ("images", "digits"):
        parts.append("no labels")
    size = f"{readable_bytes(manifest.size_bytes)} in {counted(len(manifest.shards), 'shard')}"
    first = f"{out}: {', '.join([*parts, size])}, {manifest.num_rejected:,} rejected"
    if not manifest.num_rejected:
        return first
    path = out / "rejected.jsonl"
    return "\n".join([f"{first} (all in {path}):", *_reasons(path)])


def readable_amounts(amounts: Mapping[str, float]) -> list[str]:
    """Seconds as a duration, other amounts with their names."""
    return [
        readable_seconds(amount) if name == "seconds" else f"{int(amount):,} {name}" for name, amount in amounts.items()
    ]


def readable_seconds(amount: float) -> str:
    """12.3 s, 4.5 min, 960.1 h."""
    if amount < 60:
        return f"{amount:.1f} s"
    return f"{amount / 60:.1f} min" if amount < 3600 else f"{amount / 3600:,.1f} h"


def _reasons(path: Path) -> list[str]:
    """How often each reason was given, most frequent first; reasons that differ in numbers count as one."""
    counts: Counter[str] = Counter()
    wordings = defaultdict(set)
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            reason = json.loads(line)["reason"]
            general = re.sub(r"\d(?:[\d,.]*\d)?", "…", reason)
            counts[general] += 1
            wordings[general].add(reason)
    width = len(f"{max(counts.values()):,}")
    lines = [
        f"  {number:>{width},}  {general if len(wordings[general]) > 1 else next(iter(wordings[general]))}"
        for general, number in counts.most_common(_MAX_REASONS)
    ]
    others = counts.total() - sum(number for _, number in counts.most_common(_MAX_REASONS))
    return [*lines, f"  {others:>{width},}  for other reasons"] if others else lines
