import json
from pathlib import Path

import pytest

from data_pipelines.shards.manifest import DatasetManifest
from deploy.summary import readable_seconds, summary


def a_manifest(**changes: object) -> DatasetManifest:
    values: dict[str, object] = {
        "kind": "speech",
        "made_from": "here",
        "fingerprint": "",
        "shards": ["a", "b"],
        "complete": True,
        "num_samples": 12_000,
        "size_bytes": 3 << 30,
        **changes,
    }
    return DatasetManifest(**values)  # type: ignore[arg-type]


def test_amounts_are_told_in_units_for_people() -> None:
    out = Path("out")
    assert summary(out, a_manifest(amounts={"seconds": 3_456_000.0})) == (
        "out: 12,000 samples, 960.0 h, 3.0 GiB in 2 shards, 0 rejected"
    )
    assert summary(out, a_manifest(kind="text", amounts={"tokens": 6_144_000.0})) == (
        "out: 12,000 samples, 6,144,000 tokens, 3.0 GiB in 2 shards, 0 rejected"
    )
    assert summary(out, a_manifest(kind="images")) == "out: 12,000 samples, no labels, 3.0 GiB in 2 shards, 0 rejected"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.5, "59.5 s"), (61, "1.0 min"), (3599, "60.0 min"), (5e6, "1,388.9 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert readable_seconds(seconds) == text


def test_reasons_are_grouped_and_the_most_frequent_come_first(tmp_path: Path) -> None:
    reasons = [f"{width} x 10.5 pixels are more than the cap of 64,000,000" for width in range(1_000, 1_012)]
    reasons += ["is empty"] * 3 + ["byte 7 is wrong"] * 2
    reasons += [f"error {letter}" for letter in "abcdefghi"]
    lines = [json.dumps({"source": f"file {number}", "reason": reason}) for number, reason in enumerate(reasons)]
    (tmp_path / "rejected.jsonl").write_text("\n".join(lines) + "\n")
    printed = summary(tmp_path, a_manifest(num_rejected=len(reasons))).splitlines()
    assert printed[0].endswith(f"26 rejected (all in {tmp_path}/rejected.jsonl):")
    assert printed[1:4] == [
        "  12  … x … pixels are more than the cap of …",
        "   3  is empty",
        "   2  byte 7 is wrong",  # all alike: the number is not hidden
    ]
    assert printed[4:] == [*(f"   1  error {letter}" for letter in "abcdefg"), "   2  for other reasons"]
