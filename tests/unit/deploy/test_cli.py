"""The command line: instant help without torch, one clear line for each mistake."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from deploy import cli, report
from model.errors import ConfigError
from pretrain.errors import RunError

HEAVY = ("torch", "numpy", "transformers", "matplotlib", "PIL", "sklearn", "deepspeed")
HELP = [
    ["--help"],
    *([name, "--help"] for name in cli.COMMANDS),
    *(["prepare", kind, "--help"] for kind in ("images", "speech", "text")),
    ["shards", "preview", "--help"],
    *(["launch", kind, "--help"] for kind in ("local", "hostfile", "slurm")),
    ["train", "image-base", "--help"],
]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        f"import sys; from deploy import cli\n"
        f"try: status = cli.main({arguments!r})\n"
        f"except SystemExit as stop: status = stop.code\n"
        f"print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)\n"
        f"sys.exit(status)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0
    assert "usage: d2v" in process.stdout
    assert process.stderr.endswith("LOADED []\n")


def test_recipe_help_lists_every_field_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "image-large", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--training.global-batch-size" in out
    assert "Units of one optimizer step over all ranks" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean train?"]),
        (["train"], ["which recipe?", "image-tiny"]),
        (["train", "image-bas"], ["unknown recipe 'image-bas'", "did you mean image-base?"]),
        (["train", "image-tiny", "--optim.lrr", "1"], ["optim.lrr", "did you mean optim.lr?"]),
        (["train", "image-tiny", "--optim.lr", "fast"], ["optim.lr", "valid number"]),
        (["train", "image-tiny", "--config", "/nowhere.yaml"], ["--config /nowhere.yaml", "No such file"]),
        (["train", "image-tiny", "--deepspeed", "/nowhere.json"], ["--deepspeed /nowhere.json", "No such file"]),
        (["train", "image-tiny"], ["data.path"]),
        (["train", "image-tiny", "--data.path", "/nowhere"], ["/nowhere"]),
        (["train", "image-tiny", "--run-dir", "/proc/run"], ["--run-dir /proc/run", "cannot be written"]),
        (["train", "image-tiny", "--training.microbatch-size", "5"], ["training.microbatch_size", "5 does not divide"]),
        (["train", "image-tiny", "--optim.lr", "-1"], ["d2v: error: optim.lr: must be above 0, got -1.0"]),
        (
            ["tune", "image-tiny", "--cluster=2xcpu", "--data.path", "/nowhere"],
            ["/nowhere: there is no such folder of shards"],
        ),
        (["launch", "slrm"], ["unknown launch 'slrm'", "slurm"]),
        (["launch", "slurm", "image-tiny", "--sbatch-arg"], ["--sbatch-arg needs a value"]),
        (
            ["launch", "slurm", "image-tiny", "--nodes=1", "--gpus-per-node=1", "--time=1:00"],
            ["--time=1:00: is no option of d2v launch slurm", "--sbatch-arg --time=1:00"],
        ),
        (["launch", "hostfile", "image-tiny", "--gpus-per-node", "1"], ["which machines?", "--hosts a,b"]),
        (["report", "/nowhere"], ["/nowhere"]),
        (["eval", "knn", "/nowhere", "--bank", "x", "--test", "y"], ["/nowhere"]),
        (["export", "hf", "/nowhere", "/tmp/out"], ["/nowhere"]),
        (["shards", "info", "/nowhere"], ["/nowhere"]),
        (["prepare", "images", "/nowhere", "/tmp/out"], ["/nowhere"]),
    ],
    ids=lambda value: " ".join(value) if value[0] in (*cli.COMMANDS, "trian") else "",
)
def test_mistakes_are_one_line_and_status_2(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    if arguments[:1] == ["train"] and "--run-dir" not in arguments:
        arguments = [*arguments, f"--run-dir={tmp_path / 'run'}"]
    process = run(arguments, {})
    assert process.returncode == 2, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("d2v: error: ")
    for word in words:
        assert word in process.stderr


def test_global_batch_must_divide_over_the_ranks(tmp_path: Path) -> None:
    ranks = {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    process = run(["train", "image-tiny", f"--run-dir={tmp_path}"], ranks)
    assert process.returncode == 2
    assert "[rank 2] training.global_batch_size: 32 is not divisible by the 3" in process.stderr


@pytest.mark.parametrize(
    "arguments", [["train", "image-base", "--help"], ["--version"], ["eval", "--help"]], ids=" ".join
)
def test_closed_pipe_is_quiet(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments], env=buffered, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, "")


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"d2v {version('data2vec-scale')}\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (ConfigError("a"), 2, "d2v: error: a\n"),
        (DataError("b"), 2, "d2v: error: b\n"),
        (RunError("c"), 2, "d2v: error: c\n"),
        (PermissionError(13, "Permission denied", "/file"), 2, "d2v: error: /file: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "d2v: error: a file cannot be written: No space left on device\n"),
    ],
    ids=repr,
)
def test_errors_of_the_user_become_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    monkeypatch.setattr(report, "main", raising(error))
    assert cli.main(["report", "run"]) == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ValueError("x"), OSError(5, "no file in it"), SystemExit(3)], ids=repr)
def test_our_own_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    monkeypatch.setattr(report, "main", raising(error))
    with pytest.raises(type(error)):
        cli.main(["report", "run"])


def test_deepspeed_puts_its_argument_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--local_rank=1", "train", "image-nope"]) == 2
    assert "unknown recipe" in capsys.readouterr().err


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def command(argv: list[str]) -> int:
        raise error

    return command


def run(arguments: list[str], ranks: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")} | ranks
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments], env=environment, capture_output=True, text=True
    )
