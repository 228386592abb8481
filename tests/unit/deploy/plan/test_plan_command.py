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
from pretrain.recipes.registry import recipe
from pretrain.request import lay_out
from tests.distributed.launch import REPOSITORY


@pytest.mark.parametrize(("cluster", "batch"), [("128x8xH100", 2048), ("1x8xH100", 8192), ("16x72xB200", 10080)])
def test_answers_in_a_second_without_torch(cluster: str, batch: int) -> None:
    """From a fresh interpreter, in CPU seconds, at best of three, for the machine may be busy: of many devices, of few
    that much does not fit on, of a batch with many divisors.
    """
    arguments = ["plan", "image-7b", f"--cluster={cluster}", f"--global-batch={batch}"]
    program = f"import sys; from deploy.cli import main; main({arguments}); assert 'torch' not in sys.modules"
    took: list[float] = []
    while len(took) < 3 and not any(seconds < 1 for seconds in took):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 1


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
    written = tmp_path / "out" / "deepspeed.json"
    settings = json.loads(written.read_text())
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1_000_000
    assert lay_out(made, 2, read_user_json(written))[1] == settings
    assert "d2v train image-base --deepspeed" in capsys.readouterr().out


def test_a_user_json_that_contradicts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"zero_optimization": {"stage": 3}}')
    arguments = ["plan", "image-base", "--cluster", "2xcpu", "--parallel.zero-stage=1", "--deepspeed", str(mine)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "zero_optimization.stage is 3 but the run's configuration gives 1" in capsys.readouterr().out


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


def test_a_run_may_be_called_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's layout and batch are those of the recipe that was asked for."""
    given = ["plan", "image-huge16", "--cluster", "2x8xA100-80", "--name", "image-tiny", "--top", "1"]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "image-tiny on 2x8xA100-80" in out and "\nown " in out and "the recipe's batch" not in out


def test_the_users_json_decides_what_is_legal_and_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.json"
    given = ["plan", "image-base", "--cluster", "2xcpu", "--json", "--top", "99", "--deepspeed", str(mine)]

    def answer(text: str, *more: str) -> dict:
        mine.write_text(text)
        assert main([*given, *more]) == 0
        return json.loads(capsys.readouterr().out)

    overlapping = answer('{"zero_optimization": {"overlap_comm": true}}')
    assert {plan["parallel"]["zero_stage"] for plan in overlapping["plans"]} == {2, 3}
    assert any("overlap_comm is true, but stage" in one["reason"] for one in overlapping["reasons"])
    sized = answer('{"train_micro_batch_size_per_gpu": 4}')
    assert {plan["microbatches"]["image"]["size"] for plan in sized["plans"]} == {4}
    whole, cut = (
        answer(f'{{"zero_optimization": {{"stage": 3, "stage3_param_persistence_threshold": {least}}}}}')
        for least in (10**9, 0)
    )
    first, second = (one["plans"][0]["bytes_sent"]["dp"] for one in (whole, cut))
    assert second > 1.2 * first


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--parallel.tp-size=3"], "parallel.tp_size: 3 does not divide the 2 processes; the nearest size that is"),
        (["--parallel.pp-size=64"], "parallel.pp_size: 64 stages need a block each, but there are"),
        (["--parallel.offload=optimizer", "--parallel.zero-stage=0"], "parallel.offload: optimizer needs sharded"),
        (["--parallel.sequence-parallel=true", "--parallel.tp-size=1"], "parallel.sequence_parallel: splits rows"),
    ],
)
def test_pinned_fields_that_are_not_possible_say_why(
    flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "image-tiny", "--cluster", "2xcpu", *flags]) != 0
    said = capsys.readouterr()
    assert reason in said.out + said.err


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
