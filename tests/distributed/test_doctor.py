"""``d2v doctor --distributed`` over real processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from pretrain.environment import free_port
from tests.distributed.launch import REPOSITORY, rank_environment

DOCTOR = ["-m", "deploy.cli", "doctor", "--distributed"]


def test_two_processes_of_torchrun(tmp_path: Path) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    process = subprocess.run(
        [torchrun, "--nproc-per-node=2", f"--master-port={free_port()}", *DOCTOR, "--json", f"--run-dir={tmp_path}"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    ranks = [(rank["rank"], rank["local_rank"], rank["local_size"], rank["launcher"]) for rank in report["ranks"]]
    assert ranks == [(0, 0, 2, "env"), (1, 1, 2, "env")]
    rows = {row["name"]: row for row in report["checks"]}
    levels = {name: row["level"] for name, row in rows.items()}
    assert levels.pop("slurm") in ("ok", "absent")
    assert set(levels.values()) == {"ok"}
    assert "gloo: right" in rows["all-reduce"]["detail"] and "GB/s" in rows["all-reduce"]["detail"]
    assert "read by all 2 ranks" in rows["run directory"]["detail"]
    assert list(tmp_path.iterdir()) == []  # left as it was


def test_a_run_dir_that_one_rank_does_not_see(tmp_path: Path) -> None:
    port = free_port()
    homes = [tmp_path / "n0", tmp_path / "n1"]
    (homes[0] / "runs").mkdir(parents=True)
    homes[1].mkdir()
    ranks = [
        subprocess.Popen(
            [sys.executable, *DOCTOR, "--run-dir=runs"],
            env=rank_environment(rank, 2, port),
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
        )
        for rank, home in enumerate(homes)
    ]
    tables = [process.communicate(timeout=200)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1]
    assert "ERROR    run directory   runs: rank 1 on" in tables[0] and "rank 0 on" not in tables[0]
    assert "does not see rank 0's file: No such file or directory" in tables[0]
    assert "1 error," in tables[0] and tables[1] == ""


def test_a_rank_that_does_not_come_is_named() -> None:
    port, started = free_port(), time.monotonic()
    came = [
        subprocess.Popen(
            [sys.executable, *DOCTOR, "--timeout-seconds=15"],
            env=rank_environment(rank, 3, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 2)
    ]
    errors = [process.communicate(timeout=100)[1] for process in came]
    assert "2 of 3 processes came" in errors[0] and "missing: rank 1;" in errors[0]
    assert [process.returncode for process in came] == [2, 2]
    assert time.monotonic() - started < 60
