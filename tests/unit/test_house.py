"""Rules of the house that a machine can check (see CONTRIBUTING.md)."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("model", "data_pipelines", "pretrain", "deploy")
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for package in (*PACKAGES, "tests")
    for path in sorted((ROOT / package).rglob("*.py"))
}
SHIPPED = {path: text for path, text in SOURCES.items() if path.startswith(PACKAGES)}


def test_every_package_is_seen() -> None:
    assert {path.split("/")[0] for path in SHIPPED} == set(PACKAGES)


def test_init_files_are_empty() -> None:
    assert [path for path, text in SOURCES.items() if path.endswith("/__init__.py") and text] == []


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.rpartition("/")[0] for path in SOURCES}
    assert [folder for folder in sorted(folders) if f"{folder}/__init__.py" not in SOURCES] == []


def test_devices_come_from_arguments() -> None:
    assert [path for path, text in SHIPPED.items() if ".cuda(" in text] == []


def test_one_module_chooses_the_backend() -> None:
    named = [path for path, text in SHIPPED.items() if '"nccl"' in text or "'nccl'" in text]
    assert named == ["pretrain/build.py"]


def test_modules_are_named_for_what_they_do() -> None:
    names = {"utils", "util", "helpers", "misc", "common"}
    assert [path for path in SOURCES if names & {Path(path).stem, *Path(path).parts}] == []


def test_files_are_short() -> None:
    assert {path: text.count("\n") for path, text in SOURCES.items() if text.count("\n") >= 400} == {}


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    process = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
    assert "0 broken" in process.stdout
