"""The sbatch command line to the letter, and what is refused before it is run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import cli
from deploy.launch.slurm import TEMPLATES, outside_jobs
from pretrain.config import from_yaml, to_yaml, with_overrides
from pretrain.preempt import mark
from pretrain.recipes.registry import recipe

GOLDEN = """\
D2V_RUN_DIR='{run} a' D2V_PYTHON=/venv/bin/python sbatch --parsable --export=ALL --job-name=image-tiny \
'--output={run} a/slurm-%j.out' --nodes=2 --ntasks-per-node=4 --gpus-per-node=h100:4 --cpus-per-task=2 \
--signal=B:USR1@600 --qos=high '--comment=$HOME; rm -rf "x"' {templates}/train.sbatch train image-tiny \
--run-dir '{run} a' --config '{run} a/launch/config.yaml'
"""
GOLDEN_WITH_SITE = """\
D2V_RUN_DIR={run} D2V_PYTHON={python} D2V_MAX_RESTARTS=3 D2V_RETRY=0 D2V_SITE={run}/launch/site.env bash \
{templates}/submit.sh {run}/launch/site.env --parsable --export=ALL --job-name=image-tiny \
--output={run}/slurm-%A_%a.out --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=12 \
--array=0-2 {templates}/train.sbatch train image-tiny --run-dir {run} \
--config {run}/launch/config.yaml --deepspeed {run}/launch/deepspeed.json
"""


def test_command_line(asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ["--nodes", "2", "--gpus-per-node", "h100:4", "--run-dir", f"{run} a", "--python", "/venv/bin/python"]
    options += ["--notice", "600", "--sbatch-arg", "--qos=high", '--sbatch-arg=--comment=$HOME; rm -rf "x"']
    assert cli.main(["launch", "slurm", *asked, *options, "--dry-run"]) == 0
    assert capsys.readouterr().out == GOLDEN.format(run=run, templates=TEMPLATES)
    assert not run.exists()


def test_command_line_with_a_site_and_everything_else(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, site, user = tmp_path / "run", tmp_path / "site", tmp_path / "ds.json"
    site.write_text("export SBATCH_PARTITION=gpu\n")
    user.write_text('{"zero_optimization": {"reduce_bucket_size": 1000000}}')
    options = ["--nodes=1", "--gpus-per-node=2", f"--run-dir={run}", f"--site={site}", f"--deepspeed={user}"]
    options += ["--resume=never", "--sbatch-arg=--array=0-2", "--max-restarts=3", "--no-retry"]
    assert cli.main(["launch", "slurm", *asked, *options, "--cpus-per-task=12", "--dry-run"]) == 0
    assert capsys.readouterr().out == GOLDEN_WITH_SITE.format(run=run, templates=TEMPLATES, python=sys.executable)


def test_a_run_with_a_name_of_its_own_starts_its_recipe(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--nodes=1", "--gpus-per-node=2", f"--run-dir={tmp_path}", "--name", "mine"]
    assert cli.main(["launch", "slurm", *asked, *options, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert " --job-name=mine " in said and " train image-tiny --run-dir " in said


def test_tasks_without_gpus(asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--nodes=1", "--tasks-per-node=4", f"--run-dir={tmp_path}", "--sbatch-arg=--gres=gpu:4", "--dry-run"]
    assert cli.main(["launch", "slurm", *asked, *options]) == 0
    said = capsys.readouterr().out
    assert " --ntasks-per-node=4 " in said and " --gres=gpu:4 " in said and "--gpus-per-node" not in said


def test_a_second_job_of_a_run_is_not_submitted(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless it waits for the first, or that has left the queue; with stand-ins, the real one is in tests/slurm."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, text in {"sbatch": "echo 77", "squeue": '[[ $* == *--jobs=77* ]] && echo "$QUEUED"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("QUEUED", "77")
    run = tmp_path / "run"
    launch = ["launch", "slurm", *asked, "--nodes=1", "--gpus-per-node=2", f"--run-dir={run}"]
    assert cli.main(launch) == 0
    before = (run / "launch" / "config.yaml").read_text()
    capsys.readouterr()
    assert cli.main([*launch, "--logging.every-steps=7"]) == 2
    assert capsys.readouterr().err.startswith(f"d2v: error: {run}: job 77 of this run is in the queue; ")
    assert (run / "launch" / "config.yaml").read_text() == before  # the job reads it when it restarts
    assert cli.main([*launch, "--sbatch-arg", "--dependency=singleton"]) == 0
    monkeypatch.setenv("QUEUED", "")
    assert cli.main(launch) == 0


@pytest.mark.parametrize("name", ["train.sbatch", "submit.sh", "site.env.example"])
def test_scripts_are_bash(name: str) -> None:
    script = TEMPLATES / name
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    if shutil.which("shellcheck"):
        check = subprocess.run(["shellcheck", "--shell=bash", script], capture_output=True, text=True)
        assert check.returncode == 0, check.stdout


def test_submission_keeps_what_was_submitted(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for sbatch shows what it gets; a real one is in tests/slurm."""
    (tmp_path / "sbatch").write_text(
        f'#!/bin/bash\nprintf \'%s\\n\' "$SBATCH_PARTITION" "$SLURM_JOB_ID" "$D2V_RUN_DIR" "$@" > {tmp_path}/got\n'
        "echo '77;cluster'\n"
    )
    (tmp_path / "sbatch").chmod(0o755)
    (tmp_path / "site").write_text("export SBATCH_PARTITION=gpu\necho loading modules\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    run = tmp_path / "run"
    options = [*asked, "--nodes=1", "--gpus-per-node=2", f"--run-dir={run}", f"--site={tmp_path / 'site'}"]
    assert cli.main(["launch", "slurm", *options, "--optim.lr=0.5"]) == 0
    assert capsys.readouterr().out == f"job 77; squeue --job 77; tail -F {run}/slurm-77.out\n"
    got = (tmp_path / "got").read_text().splitlines()
    assert got[:4] == ["gpu", "", str(run), "--parsable"]
    command = (run / "launch" / "command.txt").read_text()
    assert cli.main(["launch", "slurm", *options, "--optim.lr=0.5", "--dry-run"]) == 0
    assert capsys.readouterr().out == command
    assert from_yaml((run / "launch" / "config.yaml").read_text(), "").optim.lr == 0.5
    assert (run / "launch" / "site.env").read_text() == (tmp_path / "site").read_text()
    assert cli.main(["launch", "slurm", *options, "--sbatch-arg", "--array=0-2"]) == 0
    assert capsys.readouterr().out == f"job 77; squeue --job 77; tail -F {run}/slurm-77_*.out\n"


def test_sbatch_refuses(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    options = ["--nodes=1", "--gpus-per-node=2", f"--run-dir={tmp_path / 'run'}"]
    assert cli.main(["launch", "slurm", *asked, *options]) == 2
    assert capsys.readouterr().err == "d2v: error: the job was not submitted: sbatch: error: invalid partition\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nodes=3"], ["training.global_batch_size: 8 is not divisible by the 6 data-parallel ranks"]),
        (["--parallel.tp-size=3"], ["parallel.tp_size: 3 does not divide", "4 processes"]),
        (["--optim.lrr=1"], ["optim.lrr", "did you mean optim.lr?"]),
        (["--data.path=/nowhere"], ["/nowhere"]),
        (["--site=/nowhere"], ["--site /nowhere", "No such file"]),
        (["--site=/nowhere", "--dry-run"], ["--site /nowhere", "No such file"]),
        (["--run-dir=/tmp/a;b"], ["--run-dir '/tmp/a;b'", "has ';'"]),
        (["--run-dir=/tmp/a%j"], ["has '%'"]),
        (["--run-dir=/proc/run"], ["--run-dir /proc/run: cannot be written"]),
    ],
    ids=lambda value: value[0][:20],
)
def test_mistakes_are_named_before_anything_is_submitted(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    command = ["launch", "slurm", *asked, "--nodes=2", "--gpus-per-node=2", f"--run-dir={tmp_path / 'run'}", *options]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert error.count("\n") == 1


def test_shards_that_only_the_nodes_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["launch", "slurm", "image-tiny", "--nodes=1", "--gpus-per-node=2", "--data.path=/scratch/shards"]
    assert cli.main([*command, f"--run-dir={tmp_path}", "--skip-data-check", "--dry-run"]) == 0
    assert "--data" not in capsys.readouterr().out  # it is in config.yaml


def test_a_new_job_does_not_inherit_the_one_it_is_submitted_from() -> None:
    inside = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SBATCH_QOS": "x", "A": "1"}
    assert outside_jobs(inside) == {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_QOS": "x", "A": "1"}


def test_a_run_that_is_done_is_not_submitted(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But it is if more steps are wanted; another run's directory is refused."""
    launch = ["launch", "slurm", *asked, "--nodes=1", "--gpus-per-node=2", f"--run-dir={tmp_path}"]
    checkpoint = tmp_path / "checkpoints" / "step-00000030"
    checkpoint.mkdir(parents=True)
    assert cli.main([*launch, "--training.max-steps=30", "--dry-run"]) == 0
    assert "sbatch" in capsys.readouterr().out  # a checkpoint without DONE is a run to go on with
    mark(tmp_path, done=True)
    config = with_overrides(recipe(asked[0]), [*asked[1:], "--training.max-steps=30"])
    (checkpoint / "config.yaml").write_text(to_yaml(config))
    assert cli.main([*launch, "--training.max-steps=30"]) == 0
    assert capsys.readouterr().out == f"{tmp_path} is done: it has all 30 steps\n"
    assert cli.main([*launch, "--training.max-steps=31", "--dry-run"]) == 0
    assert "sbatch" in capsys.readouterr().out
    assert cli.main([*launch, "--training.max-steps=30", "--optim.lr=0.5"]) == 2
    assert "optim.lr: 0.003 -> 0.5" in capsys.readouterr().err
    assert cli.main([*launch, "--training.max-steps=30", "--resume=never"]) == 2
    assert "already holds checkpoints" in capsys.readouterr().err
