"""Ranks agree on checkpoints: that one could not be written, and which is the newest whole one."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What either rank saw, see the worker."""
    run_dir: Path = tmp_path_factory.mktemp("run")
    outputs = run_ranks("tests.distributed.checkpoint_worker", [str(run_dir)], 2)
    return [json.loads(out[out.index("RESULT ") + len("RESULT ") :].splitlines()[0]) for out in outputs]


@pytest.mark.parametrize(("place", "file"), [("rank 0", "manifest.json"), ("rank 1", "rank-00001.safetensors")])
def test_all_ranks_raise_what_one_could_not_write(ranks: list[dict[str, Any]], place: str, file: str) -> None:
    assert ranks[0][place] == ranks[1][place]
    assert ranks[0][place]["error"].startswith("checkpoint of step 1 could not be written: ")
    assert file in ranks[0][place]["error"] and "File too large" in ranks[0][place]["error"]
    assert ranks[0][place]["may be mended"], "so that d2v train leaves no FAILED"
    assert ranks[0]["left"] == ["step-00000000"]


def test_who_writes_a_file_has_the_disk_take_it_in(ranks: list[dict[str, Any]]) -> None:
    """The disk of another machine takes in nothing of what lies in the memory of this one."""
    for number, rank in enumerate(ranks):
        assert [name for name in rank["synced"] if name.startswith("rank-")] == [f"rank-{number:05d}.safetensors"]
    assert any("manifest.json" in name for name in ranks[0]["synced"])


def test_ranks_share_the_reading_and_agree_on_the_choice(ranks: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(ranks):
        file = f"rank-{number:05d}.safetensors"
        assert rank["chosen"]["found"] == "step-00000000"
        assert rank["chosen"]["read"] == [f"step-00000001/{file}", f"step-00000000/{file}"]
        (reason,) = rank["chosen"]["refused"]
        assert "step-00000001 is damaged" in reason and "rank-00001.safetensors does not match" in reason
