"""What the machine has against what is needed."""

import resource
from pathlib import Path

import pytest

from deploy.doctor import machine
from pretrain.recipes.registry import recipe

MIB, GIB = 1 << 20, 1 << 30


def test_a_missing_package_is_named_with_its_version() -> None:
    found = machine.judge_packages(
        {"torch": "2.13.0", "sentencepiece": "0.2.3"}, {"torch": "2.13.0", "sentencepiece": None}
    )
    assert (found.level, found.detail) == ("error", "not installed: sentencepiece")
    assert found.fix == "pip install sentencepiece==0.2.3"


def test_another_version_is_a_warning_another_build_is_none() -> None:
    wanted = {"torch": "2.13.0", "numpy": "2.4.6"}
    assert machine.judge_packages(wanted, {"torch": "2.13.0+cu130", "numpy": "2.4.6"}).level == "ok"
    found = machine.judge_packages(wanted, {"torch": "2.12.0+cpu", "numpy": "2.4.6"})
    assert (found.level, found.detail) == ("warning", "torch 2.12.0+cpu (tested: 2.13.0)")


def test_a_step_of_image_base_in_bytes() -> None:
    assert machine.bytes_of_batch(recipe("image-base")) == 256 * 3 * 224 * 224 * 4


@pytest.mark.parametrize(("free", "level"), [(64 * MIB, "error"), (GIB, "warning"), (3 * GIB, "ok")])
def test_small_shared_memory(free: int, level: str) -> None:
    found = machine.judge_shared_memory(16 * GIB, free, 147 * MIB, 20)
    assert found.level == level
    assert ("bus error" in found.detail, "--shm-size" in found.fix) == (level != "ok", level != "ok")


@pytest.mark.parametrize(
    ("files", "locked", "has_infiniband", "words"),
    [
        (256, resource.RLIM_INFINITY, False, "ulimit -n 4096"),
        (1024, 8 * MIB, True, "LimitMEMLOCK"),
        (1024, 8 * MIB, False, ""),
        (1024, resource.RLIM_INFINITY, True, ""),
    ],
)
def test_limits(files: int, locked: int, has_infiniband: bool, words: str) -> None:
    found = machine.judge_limits(files, 4096, locked, has_infiniband)
    assert found.level == ("warning" if words else "ok")
    assert words in found.fix


def test_a_missing_compiler_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = machine.compiler()
    assert found.level == "warning" and "no-such-compiler is not there" in found.detail


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("sinfo", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'sinfo: error: Unable to contact slurm controller' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert machine.slurm().level == "absent"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    found = machine.slurm()
    assert found.level == "warning" and "Unable to contact slurm controller" in found.detail
