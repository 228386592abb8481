"""What is wrong with processes together, from what each says."""

from dataclasses import replace

import pytest

from deploy.doctor import ranks as judge
from deploy.doctor.ranks import Rank

ONE = Rank(
    rank=0,
    host="n0",
    local_rank=0,
    local_size=2,
    launcher="env",
    device="NVIDIA H100",
    device_id="GPU-a",
    versions={"torch": "2.13.0+cu130"},
)
FOUR = [
    ONE,
    replace(ONE, rank=1, local_rank=1, device_id="GPU-b"),
    replace(ONE, rank=2, host="n1"),  # the same id on another host is another GPU
    replace(ONE, rank=3, host="n1", local_rank=1, device_id="GPU-b"),
]


def changed(rank: int, **values: object) -> list[Rank]:
    return [replace(one, **values) if one.rank == rank else one for one in FOUR]  # type: ignore[arg-type]


def test_the_table() -> None:
    assert judge.table(FOUR)[:2] == [
        "rank  host  local   launcher  device",
        "0     n0    0 of 2  env       NVIDIA H100",
    ]
    assert judge.table(FOUR)[4] == "3     n1    1 of 2  env       NVIDIA H100"


def test_devices() -> None:
    assert judge.judge_devices(FOUR).level == "ok"
    twice = judge.judge_devices(changed(3, device_id="GPU-a"))
    assert (twice.level, twice.detail) == ("error", "ranks 2, 3 share one GPU of n1 (GPU-a)")
    mixed = judge.judge_devices(changed(1, device="NVIDIA A100"))
    assert mixed.level == "warning" and "NVIDIA A100, NVIDIA H100" in mixed.detail
    cpus = [replace(one, device="cpu, 1 threads", device_id="") for one in FOUR]
    assert judge.judge_devices(cpus).level == "ok"


def test_ranks_per_host() -> None:
    assert judge.judge_hosts(FOUR).detail == "4 of 4 came, on 2 hosts"
    wrong = judge.judge_hosts(changed(3, host="n0"))
    assert wrong.level == "warning"
    assert "n0 has 3, told 2" in wrong.detail and "n1 has 1, told 2" in wrong.detail


def test_versions() -> None:
    assert judge.judge_versions(FOUR).level == "ok"
    other = judge.judge_versions(changed(2, versions={"torch": "2.12.0+cu130"}))
    assert other.level == "error"
    assert other.detail == "torch is 2.13.0+cu130 on n0 (rank 0), 2.12.0+cu130 on n1 (rank 2)"
    assert "torch is 2.13.0+cu130 on n0 (rank 0), missing" in judge.judge_versions(changed(3, versions={})).detail


@pytest.mark.parametrize(
    ("launcher", "num_ranks", "tasks", "step", "level"),
    [
        ("env", 4, None, None, "absent"),
        ("slurm", 4, 4, 4, "ok"),
        ("slurm", 4, 8, 4, "warning"),  # srun -n 4 in a job of 8
        ("single", 1, 8, None, "error"),  # python instead of srun python
        ("single", 1, 1, None, "ok"),
        ("env", 4, 2, 2, "ok"),  # one torchrun per host
        ("env", 4, 4, 1, "ok"),  # torchrun in the batch step
        ("env", 4, 4, 4, "ok"),  # every task was given its RANK
        ("env", 4, 16, 16, "error"),  # a torchrun in every task
    ],
)
def test_slurm(launcher: str, num_ranks: int, tasks: int | None, step: int | None, level: str) -> None:
    ranks = [replace(one, launcher=launcher, slurm_tasks=tasks, slurm_step_tasks=step) for one in FOUR[:num_ranks]]
    assert judge.judge_slurm(ranks).level == level


def test_clocks() -> None:
    assert judge.judge_clocks(FOUR, [0.0, 0.001, -0.5, 0.2]).detail == "within 500.0 ms of rank 0's"
    skewed = judge.judge_clocks(FOUR, [0.0, 0.001, -310.0, 12.0])
    assert skewed.level == "warning" and "the clock of n1 is -310.0 s" in skewed.detail


def test_run_dir() -> None:
    assert judge.judge_run_dir("runs/a", FOUR, [""] * 4).level == "ok"
    hidden = judge.judge_run_dir("runs/a", FOUR, ["", "", "does not see rank 0's file", ""])
    assert hidden.level == "error"
    assert hidden.detail == "runs/a: rank 2 on n1: does not see rank 0's file"
