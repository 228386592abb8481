"""Speech, text and all of them in one run: from files to falling losses, on one and two processes, killed between."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import soundfile
import torch

from data_pipelines.loader import build_loader
from data_pipelines.reader import Reader
from data_pipelines.transforms.text import read_tokens
from deploy.cli import main
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.store import complete_checkpoints, locate
from pretrain.config import RunConfig, with_overrides
from pretrain.environment import free_port
from pretrain.masking import masking_of
from pretrain.recipes.registry import recipe
from tests.distributed.launch import rank_environment, run_ranks, start_ranks, train_records
from tests.integration.test_resume import tensors, wait_for_step
from tests.unit.data_pipelines.speech import speech

STEPS, KILLED_AFTER, SAVED_EVERY = 100, 85, 80
QUIET = ["--logging.every-steps=1", "--logging.tensorboard=false", "--health.every-steps=20", "--data.num-workers=1"]


@pytest.fixture(scope="session")
def speech_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 recordings of 1.2 to 4 s in LibriSpeech's layout, prepared."""
    source = tmp_path_factory.mktemp("speech")
    lines = []
    for number, seconds in enumerate(np.linspace(1.2, 4.0, 40)):
        folder = source / "dev-clean" / "7" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"7-1-{number:04d}.flac", speech(number, float(seconds)), 16_000)
        lines.append(f"7-1-{number:04d} RECORDING {number}")
    (folder / "7-1.trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path_factory.mktemp("speech-shards") / "out"
    assert main(["prepare", "speech", str(source), str(out), "--workers", "1"]) == 0
    return out


@pytest.fixture(scope="session")
def text_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python library's documentation as blocks of 64 tokens of its own vocabulary."""
    folder = tmp_path_factory.mktemp("text")
    assert main(["prepare", "stdlib", str(folder / "stdlib.txt")]) == 0
    options = ["--vocab-size", "2000", "--tokens-per-sample", "64", "--workers", "1"]
    assert main(["prepare", "text", str(folder / "stdlib.txt"), str(folder / "out"), *options]) == 0
    return folder / "out"


def mean_losses(run_dir: Path, name: str = "loss") -> tuple[float, float]:
    """Over the first and the last ten steps."""
    values = [record[name] for record in train_records(run_dir)]
    return fmean(values[:10]), fmean(values[-10:])


def last_health(run_dir: Path) -> dict[str, float]:
    """The last measurement of the features."""
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record for record in records if record["kind"] == "health"][-1]


def masked_shares(config: RunConfig, modality: str) -> set[tuple[int, int]]:
    """(removed, all) tokens of every view of a few batches."""
    loader = build_loader(
        config.data,
        modality,
        seed=0,
        masking=masking_of(config.model, modality),
        dp_rank=0,
        dp_size=1,
        microbatch_size=1,
        num_microbatches=1,
    )
    seen = set()
    for _ in range(5):
        mask = next(loader).mask
        seen |= {(int(view.sum()), len(view)) for view in mask.flatten(0, 1)}
    loader.close()
    return seen


def failure(arguments: list[str]) -> str:
    """Standard error of a training process that ends with status 2."""
    process = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "train", *arguments],
        env=rank_environment(0, 1, free_port()),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert process.returncode == 2, process.stderr
    return process.stderr


def test_speech_learns_and_masks_what_the_recipe_says(tmp_path: Path, speech_shards: Path) -> None:
    options = [f"--data.path={speech_shards}", "--training.max-steps=80", *QUIET]
    assert run_ranks("deploy.cli", ["train", "audio-tiny", f"--run-dir={tmp_path}", *options], 1)
    first, last = mean_losses(tmp_path)
    assert last < 0.75 * first
    assert last_health(tmp_path)["student_spread"] > 0.1  # a collapsed encoder has a falling loss, too
    config = with_overrides(recipe("audio-tiny"), [f"--data.path={speech_shards}", "--data.num-workers=0"])
    assert config.model.audio is not None
    prob = config.model.audio.mask.prob
    shares = masked_shares(config, "audio")
    assert {removed for removed, _ in shares} == {int(tokens * prob) for _, tokens in shares}


def test_a_collapse_that_only_the_spread_of_the_student_shows(tmp_path: Path, speech_shards: Path) -> None:
    reckless = ["--optim.lr=1e-2", "--schedule.warmup-steps=2", "--ema.start=0.9", "--ema.end=0.99"]
    health = ["--health.every-steps=15", "--health.after-steps=15", "--health.on-collapse=stop"]
    options = [f"--data.path={speech_shards}", "--training.max-steps=30", *QUIET, *reckless, *health]
    message = failure(["audio-tiny", f"--run-dir={tmp_path}", *options]).splitlines()[-1]
    assert re.match(r"d2v: error: step 15: collapse: student_spread [\d.e-]+ is below 0\.01 \(health", message), message
    assert last_health(tmp_path)["student_effective_rank"] > 3
    assert train_records(tmp_path)[-1]["loss"] < train_records(tmp_path)[0]["loss"]


def test_text_learns_and_masks_what_the_recipe_says(tmp_path: Path, text_shards: Path) -> None:
    options = [f"--data.path={text_shards}", "--training.max-steps=60", *QUIET]
    assert run_ranks("deploy.cli", ["train", "text-tiny", f"--run-dir={tmp_path}", *options], 1)
    first, last = mean_losses(tmp_path)
    assert last < 0.7 * first
    config = with_overrides(recipe("text-tiny"), [f"--data.path={text_shards}", "--data.num-workers=0"])
    assert config.model.text is not None
    prob = config.model.text.mask.prob
    assert masked_shares(config, "text") == {(64 - int(64 * (1 - prob)), 64)}


def test_shards_without_tokenizer_are_checked_token_by_token(tmp_path: Path, text_shards: Path) -> None:
    shutil.copytree(text_shards, tmp_path / "shards")
    (tmp_path / "shards" / "tokenizer.model").unlink()  # as shards of others come
    options = [f"--data.path={tmp_path}/shards", "--model.text.vocab-size=500", "--training.max-steps=2", *QUIET]
    message = failure(["text-tiny", f"--run-dir={tmp_path}/run", *options])
    found = re.search(
        r"^d2v: error: model\.text\.vocab_size: 500 does not hold token ([\d,]+) of text sample ([\d,]+); .*$",
        message,
        re.MULTILINE,
    )
    assert found is not None, message
    token, sample = (int(number.replace(",", "")) for number in found.groups())
    assert token >= 500 and token in read_tokens(Reader(str(text_shards)).read(sample).members["npy"])


@pytest.fixture(scope="module")
def sources(digit_shards: Path, speech_shards: Path, text_shards: Path) -> list[str]:
    paths = {"image": digit_shards, "audio": speech_shards, "text": text_shards}
    return [f"--data.{modality}.path={path}" for modality, path in paths.items()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, sources: list[str]) -> Path:
    """All modalities on two processes, with every kind of dropout."""
    run_dir = tmp_path_factory.mktemp("multimodal") / "unbroken"
    run_ranks("deploy.cli", multimodal(run_dir, sources), 2)
    return run_dir


def multimodal(run_dir: Path, sources: list[str], *extra: str) -> list[str]:
    return [
        "train",
        "multimodal-tiny",
        f"--run-dir={run_dir}",
        *sources,
        f"--training.max-steps={STEPS}",
        f"--checkpoint.every-steps={SAVED_EVERY}",
        "--precision.dtype=fp32",
        "--model.encoder.dropout=0.05",
        "--model.encoder.attention-dropout=0.05",
        "--model.encoder.layer-dropout=0.05",
        *QUIET,
        *extra,
    ]


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_each_modality_learns_in_one_run(unbroken: Path, modality: str) -> None:
    first, last = mean_losses(unbroken, f"loss_{modality}")
    assert last < 0.8 * first
    assert last_health(unbroken)[f"{modality}_student_spread"] > 0.1


def test_metrics_and_health_are_per_modality(unbroken: Path) -> None:
    record = train_records(unbroken)[-1]
    modalities = ("image", "audio", "text")
    assert {f"{modality}_target_spread" for modality in modalities} <= record.keys()
    assert {"images_per_second", "audio_seconds_per_second", "text_tokens_per_second"} <= record.keys()
    assert record["loss"] == pytest.approx(sum(record[f"loss_{modality}"] for modality in modalities))


def test_killed_multimodal_run_goes_on_bit_for_bit(tmp_path: Path, sources: list[str], unbroken: Path) -> None:
    """Up to its checkpoint it is the unbroken run's own beginning."""
    killed, saved = tmp_path / "killed", f"step-{SAVED_EVERY:08d}"
    shutil.copytree(unbroken / "checkpoints" / saved, killed / "checkpoints" / saved)
    ranks = start_ranks("deploy.cli", multimodal(killed, sources), 2, tmp_path)
    wait_for_step(killed, KILLED_AFTER)
    for process in ranks:
        process.kill()
        process.join()
    assert [path.name for path in complete_checkpoints(killed)] == [saved]
    run_ranks("deploy.cli", multimodal(killed, sources), 2)
    seen = {record["step"]: record["loss"] for record in train_records(killed)}
    assert seen == {record["step"]: record["loss"] for record in train_records(unbroken)[SAVED_EVERY:]}
    before, after = tensors(unbroken, STEPS), tensors(killed, STEPS)
    assert before.keys() == after.keys()
    assert [key for key, value in before.items() if not torch.equal(after[key], value)] == []
    assert Manifest.read(locate(killed)).positions == Manifest.read(locate(unbroken)).positions


def test_one_process_sees_the_same_samples_in_the_same_order(
    tmp_path: Path, sources: list[str], unbroken: Path
) -> None:
    """The same microbatches, so also the same dropout: equal losses of every modality."""
    (process,) = start_ranks("deploy.cli", multimodal(tmp_path, sources), 1, tmp_path)
    wait_for_step(tmp_path, 15)
    process.kill()
    process.join()
    for seen, record in zip(train_records(tmp_path)[:15], train_records(unbroken), strict=False):
        for modality in ("image", "audio", "text"):
            name = f"loss_{modality}"
            assert seen[name] == pytest.approx(record[name], rel=1e-5), (name, record["step"])
