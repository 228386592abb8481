"""A check that dies, hangs or raises is a row; the table is told by its worst row."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.doctor.checks import CHECKS, Check, run_check, run_checks
from deploy.doctor.command import main
from deploy.doctor.findings import Finding, failed, show, summary


def broken(name: str, timeout_seconds: float = 60) -> Check:
    return Check(name, f"tests.unit.deploy.doctor.broken:{name}", "mend it", timeout_seconds)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dies", Finding("error", "died of SIGSEGV", "mend it")),
        ("exits", Finding("error", "ended with status 3: no such device", "mend it")),
        ("lacks_a_package", Finding("error", "a_package_that_nobody_has is not installed", "mend it")),
        ("raises", Finding("error", "OSError: libc10_cuda.so: cannot open shared object file", "mend it")),
        ("talks", Finding("ok", "fine")),
    ],
)
def test_what_goes_wrong_is_a_row(name: str, expected: Finding) -> None:
    assert run_check(broken(name)) == expected


def test_a_check_that_hangs_is_ended() -> None:
    started = time.monotonic()
    assert run_check(broken("hangs", 0.5)) == Finding("error", "no answer within 0.5 s", "mend it")
    assert time.monotonic() - started < 10


def test_rows_come_in_order_whatever_happens() -> None:
    rows = dict(run_checks((broken("hangs", 1), broken("dies"), broken("talks"))))
    assert [finding.level for finding in rows.values()] == ["error", "error", "ok"]
    assert list(rows) == ["hangs", "dies", "talks"]


def test_only_errors_fail() -> None:
    ok, absent, warning = Finding("ok", ""), Finding("absent", ""), Finding("warning", "", "x")
    assert not failed([ok, absent, warning])
    assert failed([ok, Finding("error", "", "x"), absent])
    assert summary([ok, warning, warning, Finding("error", "")]) == "4 checks: 1 error, 2 warnings"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals() -> None:
    row, plain, terminal = Finding("error", "is broken", "mend it"), io.StringIO(), Terminal()
    show("sound", row, plain)
    show("sound", row, terminal)
    assert plain.getvalue() == f"ERROR    sound           is broken\n{'':<25}-> mend it\n"
    assert terminal.getvalue() == f"\x1b[31m✗\x1b[0m  sound           is broken\n{'':<19}-> mend it\n"


def test_run_dir_is_for_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--run-dir", "runs"])
    assert stop.value.code == 2
    assert "--run-dir needs --distributed" in capsys.readouterr().err


def test_all_of_this_machine(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path), "RANK": "5", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "deploy.cli", "doctor", "--json"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    report = json.loads(process.stdout)
    rows = {row["name"]: row for row in report["checks"]}
    assert list(rows) == [check.name for check in CHECKS]
    errors = {name: row["detail"] for name, row in rows.items() if row["level"] == "error"}
    assert list(errors) == ["launcher"], errors
    assert "LOCAL_RANK is not set" in errors["launcher"]
    assert str(lock) in rows["build cache"]["fix"]
    assert (process.returncode, report["healthy"]) == (1, False)
