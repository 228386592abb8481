"""Stopping and going on gives the unbroken run: kill, signal, damage; bit for bit on the same layout."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pretrain import preempt
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.store import complete_checkpoints, locate
from pretrain.checkpoint.weights import FragmentReader
from pretrain.environment import free_port
from tests.distributed.launch import REPOSITORY, rank_environment, run_ranks, start_ranks, train_records

STEPS = 30


def arguments(shards: Path, run_dir: Path, *extra: str) -> list[str]:
    return [
        "train",
        "image-tiny",
        f"--run-dir={run_dir}",
        f"--data.path={shards}",
        f"--training.max-steps={STEPS}",
        "--training.global-batch-size=8",
        "--schedule.warmup-steps=3",
        "--logging.every-steps=1",
        "--health.every-steps=5",
        "--logging.tensorboard=false",
        "--checkpoint.every-steps=10",
        "--checkpoint.keep=10",
        *extra,
    ]


def start(words: list[str]) -> subprocess.CompletedProcess[str]:
    """A run of one process that may fail."""
    command = [sys.executable, "-m", "deploy.cli", *words]
    environment = rank_environment(0, 1, free_port())
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)


def damage(checkpoint: Path) -> None:
    """Change one bit of its weights."""
    victim = checkpoint / "rank-00000.safetensors"
    content = bytearray(victim.read_bytes())
    content[-100] ^= 1
    victim.write_bytes(bytes(content))


def tensors(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, moments, teacher."""
    checkpoint = run_dir / "checkpoints" / f"step-{step:08d}"
    reader = FragmentReader(checkpoint)
    keys = {key for record in reader.manifest.files for key in record.ranges}
    shapes = reader.manifest.shapes
    return {key: reader.read(key, 0, torch.Size(shapes[key.split("/", 1)[1]]).numel()) for key in sorted(keys)}


def assert_same_run(seen: Path, expected: Path) -> None:
    """Losses of every step and all tensors at the end are bit-equal."""
    losses = {record["step"]: record for record in train_records(seen)}
    for record in train_records(expected):
        for name in ("loss", "grad_norm", "lr", "ema_decay", "target_spread", "prediction_spread"):
            assert losses[record["step"]][name] == record[name], (record["step"], name)
    before, after = tensors(expected, STEPS), tensors(seen, STEPS)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    positions = [Manifest.read(locate(run)).positions for run in (seen, expected)]
    assert positions == [{"image": STEPS * 8}] * 2


@pytest.fixture(scope="module", params=["1:fp32:1", "1:bf16:2", "0:bf16:2", "2:fp32:2"])
def layout(request: pytest.FixtureRequest) -> tuple[list[str], int]:
    stage, dtype, num_processes = request.param.split(":")
    return [f"--parallel.zero-stage={stage}", f"--precision.dtype={dtype}"], int(num_processes)


def test_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, digit_shards: Path, layout: tuple[list[str], int]
) -> None:
    """SIGKILL in the middle of an interval: the steps since the checkpoint are done again, with the same result.

    And no shared memory stays behind: a node where jobs are preempted must not fill up.
    """
    options, num_processes = layout
    shared_memory = set(os.listdir("/dev/shm"))
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    run_ranks("deploy.cli", arguments(digit_shards, unbroken, *options), num_processes)
    ranks = start_ranks("deploy.cli", arguments(digit_shards, killed, *options), num_processes, tmp_path)
    wait_for_step(killed, 12)
    for process in ranks:
        process.kill()
        process.join()
    assert set(os.listdir("/dev/shm")) <= shared_memory
    assert [path.name for path in complete_checkpoints(killed)] == ["step-00000010"], (
        "killed too late to prove anything"
    )
    run_ranks("deploy.cli", arguments(digit_shards, killed, *options), num_processes)
    assert_same_run(killed, unbroken)
    assert (killed / "DONE").exists() and not (killed / "RESUME").exists()


def test_resume_on_another_layout(tmp_path: Path, digit_shards: Path) -> None:
    """One process at ZeRO 1 goes on as two at ZeRO 2, and the other way round: the unbroken run's losses."""
    one, two = ["--parallel.zero-stage=1"], ["--parallel.zero-stage=2"]
    fp32 = "--precision.dtype=fp32"
    unbroken = tmp_path / "unbroken"
    run_ranks("deploy.cli", arguments(digit_shards, unbroken, fp32, *one), 1)
    expected = {record["step"]: record["loss"] for record in train_records(unbroken)}
    for first, second in (((one, 1), (two, 2)), ((two, 2), (one, 1))):
        moved = tmp_path / f"moved-{first[1]}"
        shutil.copytree(step_of(unbroken, 10, first, tmp_path, digit_shards), moved)
        options, num_processes = second
        run_ranks("deploy.cli", arguments(digit_shards, moved, fp32, *options), num_processes)
        seen = {record["step"]: record["loss"] for record in train_records(moved)}
        assert sorted(seen) == list(range(11, STEPS + 1))
        for step, loss in seen.items():
            assert loss == pytest.approx(expected[step], rel=1e-5)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_signal_saves_and_exits_0(tmp_path: Path, digit_shards: Path, name: str) -> None:
    run_dir = tmp_path / "run"
    command = arguments(digit_shards, run_dir, "--training.max-steps=100000", "--checkpoint.every-steps=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *command],
        env=rank_environment(0, 1, free_port()),
        cwd=REPOSITORY,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(run_dir, 2)
    os.killpg(process.pid, getattr(signal, name))  # the whole group, as a terminal or SLURM does: workers too
    while process.poll() is None and not (run_dir / "RESUME").exists():  # impatience does not cut the save off
        for number in preempt.SIGNALS:
            os.killpg(process.pid, number)
        time.sleep(0.005)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert (run_dir / "RESUME").exists()
    last = train_records(run_dir)[-1]["step"]
    assert Manifest.read(locate(run_dir)).step == last


def test_damaged_newest_checkpoint_falls_back_and_says_so(tmp_path: Path, digit_shards: Path) -> None:
    run_dir = tmp_path / "run"
    run_ranks("deploy.cli", arguments(digit_shards, run_dir), 1)
    newest = complete_checkpoints(run_dir)[-1]
    damage(newest)
    (run_dir / "DONE").unlink()  # a run that is done ends before it reads its checkpoints
    run_ranks("deploy.cli", arguments(digit_shards, run_dir), 1)
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    messages = [record["message"] for record in events if record["kind"] == "event"]
    assert any(newest.name in message and "checksum" in message for message in messages)
    assert any("from step-00000020" in message for message in messages)
    assert len(list(newest.parent.glob(f"refused-{newest.name}-*"))) == 1, "it makes room for the step done again"


def test_run_without_a_whole_checkpoint_does_not_begin_anew(tmp_path: Path, digit_shards: Path) -> None:
    run_dir = tmp_path / "run"
    run_ranks("deploy.cli", arguments(digit_shards, run_dir, "--training.max-steps=4"), 1)
    (run_dir / "DONE").unlink()
    (only,) = complete_checkpoints(run_dir)
    damage(only)
    process = start(arguments(digit_shards, run_dir, "--training.max-steps=4"))
    assert process.returncode == 2
    assert f"no checkpoint is whole ({only.name} is damaged: " in process.stderr
    assert complete_checkpoints(run_dir) == [only]


def test_done_run(tmp_path: Path, digit_shards: Path) -> None:
    """It ends at once, refuses to become another run, and goes on if more steps are wanted."""
    run_dir = tmp_path / "run"
    run_ranks("deploy.cli", arguments(digit_shards, run_dir, "--training.max-steps=4"), 1)
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    again = train_without_torch(tmp_path, digit_shards, "--training.max-steps=4")
    assert (again.returncode, again.stdout) == (0, f"{run_dir} is done: it has all 4 steps\n"), again.stderr
    other = train_without_torch(tmp_path, digit_shards, "--training.max-steps=4", "--optim.lr=0.5")
    assert other.returncode == 2
    assert len(other.stderr.strip().splitlines()) == 1
    assert "optim.lr: 0.003 -> 0.5" in other.stderr
    (out,) = run_ranks("deploy.cli", arguments(digit_shards, run_dir, "--training.max-steps=6"), 1)
    assert [record["step"] for record in train_records(run_dir)] == [1, 2, 3, 4, 5, 6], out
    assert (run_dir / "DONE").exists()


def test_other_config_is_refused(tmp_path: Path, digit_shards: Path) -> None:
    """Also in the middle of a run, once the checkpoint to go on from has been chosen."""
    run_dir = tmp_path / "run"
    run_ranks("deploy.cli", arguments(digit_shards, run_dir, "--training.max-steps=4"), 1)
    (run_dir / "DONE").unlink()
    process = start(arguments(digit_shards, run_dir, "--optim.lr=0.5"))
    assert process.returncode == 2
    assert len(process.stderr.strip().splitlines()) == 1
    assert "optim.lr: 0.003 -> 0.5" in process.stderr


def test_what_a_restart_does_not_mend_is_marked(tmp_path: Path, digit_shards: Path) -> None:
    """Samples beyond repair; the marker goes when the run is started again."""
    shards, run_dir = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(digit_shards, shards)
    for shard in shards.glob("*.tar"):
        content = bytearray(shard.read_bytes())
        for place in range(600, len(content), 512):
            content[place] ^= 1
        shard.write_bytes(content)
    for _ in range(2):
        process = start(arguments(shards, run_dir))
        assert process.returncode == 2
        assert (run_dir / "FAILED").read_text() in process.stderr
        assert "CRC-32" in process.stderr
        (run_dir / "FAILED").write_text("old")


def train_without_torch(folder: Path, shards: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    """Train into ``folder``/run where torch.py in ``folder`` takes torch's place."""
    environment = rank_environment(0, 1, free_port())
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments(shards, folder / "run", *extra)],
        env=environment | {"PYTHONPATH": f"{folder}:{REPOSITORY}"},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def step_of(unbroken: Path, step: int, layout: tuple[list[str], int], tmp_path: Path, digit_shards: Path) -> Path:
    """A run directory that holds only the checkpoint of ``step``, written by ``layout``."""
    options, num_processes = layout
    source = unbroken
    if num_processes > 1:
        source = tmp_path / "written-by-two"
        run_ranks("deploy.cli", arguments(digit_shards, source, "--precision.dtype=fp32", *options), num_processes)
    kept = tmp_path / f"only-{num_processes}"
    name = f"step-{step:08d}"
    shutil.copytree(source / "checkpoints" / name, kept / "checkpoints" / name)
    return kept


def wait_for_step(run_dir: Path, step: int, seconds: float = 120) -> None:
    """Until the run has logged ``step``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (run_dir / "metrics.jsonl").exists() and any(r["step"] >= step for r in train_records(run_dir)):
            return
        time.sleep(0.02)
    raise AssertionError(f"{run_dir} did not reach step {step}")
