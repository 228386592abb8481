"""``d2v plan`` as it is typed."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import main
from pretrain.config import with_overrides
from pretrain.parallel.deepspeed_config import read_user_json
from pretrain.parallel.grid import make_grid
from pretrain.recipes.registry import recipe
from tests.distributed.launch import REPOSITORY


def test_answers_in_a_second_without_torch() -> None:
    """A search of 1,024 devices from a fresh interpreter, in CPU seconds, for the machine may be busy."""
    program = (
        "import sys; from deploy.cli import main; main(['plan', 'image-7b', '--cluster=128x8xH100']); "
        "assert 'torch' not in sys.modules"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "image-huge14", "--cluster", "4x8xA100-80", "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "32 devices, 73.6 of 80 GB usable" in out
    assert "own" in out and "GB of the fullest rank: weights" in out and "not legal:" in out
    assert "parallel.tp_size: 3 does not divide" in out


def test_json_has_the_same_and_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "image-base", "--cluster", "8xA100-40", "--json", "--top", "2"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["num_devices"] == 8 and len(answer["plans"]) == 2
    best = answer["plans"][0]
    memory = best["memory_bytes"]
    assert memory["total"] == sum(memory["state"].values()) + memory["activations"]["peak"]
    assert best["seconds"]["total"] == pytest.approx(sum(v for k, v in best["seconds"].items() if k != "total"))
    assert best["samples_per_second"] == pytest.approx(256 / best["seconds"]["total"])


def test_files_start_the_chosen_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON agrees with the configuration that the flags make, and brings what the user's own has."""
    mine = tmp_path / "mine.json"
    mine.write_text('{"zero_optimization": {"stage": "auto", "reduce_bucket_size": 1000000}}')
    arguments = ["plan", "image-base", "--cluster", "2xcpu", "--deepspeed", str(mine), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--choose", "2"]) == 0
    made = with_overrides(recipe("image-base"), (tmp_path / "out" / "flags.txt").read_text().split())
    settings = read_user_json(tmp_path / "out" / "deepspeed.json")
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1_000_000
    from deploy.plan.command import deepspeed_of

    dp_size = make_grid(made.parallel, made.model, 2).dp_size
    assert deepspeed_of(made, dp_size, settings) == settings
    assert "d2v train image-base --deepspeed" in capsys.readouterr().out


def test_a_user_json_that_contradicts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"zero_optimization": {"stage": 3}}')
    arguments = ["plan", "image-base", "--cluster", "2xcpu", "--parallel.zero-stage=1", "--deepspeed", str(mine)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "zero_optimization.stage is 3 but the run's configuration gives 1" in capsys.readouterr().err


def test_what_does_not_fit_says_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "image-7b", "--cluster", "1xA100-40", "--parallel.offload=none"]) == 1
    out = capsys.readouterr().out
    assert "0 plans fit" in out and "GB more than there is" in out


def test_batches_that_cannot_be_kept_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "image-huge16", "--cluster", "3x8xH100", "--global-batch", "200"]) == 0
    out = capsys.readouterr().out
    assert "the recipe's batch is 128 image units, not 200" in out
    assert main(["plan", "image-huge16", "--cluster", "3x8xH100"]) == 0
    out = capsys.readouterr().out
    assert "128 image units is not divisible by 24 devices" in out and "120 and 144" in out


def test_fewer_devices_accumulate(capsys: pytest.CaptureFixture[str]) -> None:
    """The paper's 16 GPUs x 8 on one: the same batch in microbatches."""
    assert main(["plan", "image-large", "--cluster", "1xA100-40", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["plans"][0]["microbatches"]["image"]
    assert best["size"] * best["number"] == 128 and best["number"] > 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["image-bass", "--cluster", "8xH100"], "did you mean image-base"),
        (["image-base"], "--cluster: which machines"),
        (["image-tiny", "--cluster", "1xcpu", "--out", "nowhere", "--choose", "99"], "--choose: 99, but"),
        (["image-base", "--cluster", "8xH100", "--parallel.tp-sise=2"], "did you mean parallel.tp_size"),
        (["image-base", "--cluster", "8xH100", "--config", "nowhere.yaml"], "--config nowhere.yaml: No such file"),
    ],
)
def test_bad_input(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert said in capsys.readouterr().err
