"""Pipelines, tensor and sequence parallelism, with data parallelism: equal to one process, tensor by tensor."""

import json
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.manifest import KINDS
from pretrain.checkpoint.store import complete_checkpoints, locate
from pretrain.checkpoint.weights import FragmentReader
from tests.distributed.launch import run_ranks
from tests.distributed.synthetic import DEPTH, STEPS

EACH = ("image", "audio", "text")
ALL = list(EACH)
TIMING = ("time", "memory_gib", "data_wait_share", "seconds_per_step", "eta_seconds", "tflops_per_second")


def case(run: str, modalities: list[str], **more: object) -> dict:
    return {"run": run, "modalities": modalities, **more}


ROWS = {"sequence_parallel": True}
COMPILED = {"compile": "blocks", "teacher": "gathered"}
SGD = {"optimizer": "sgd"}
RESUMED = [
    case("resumed", ALL, pp_size=2, tp_size=2, stop_at=2),  # 4 processes
    case("resumed", ALL, stop_at=4),  # 1
    case("resumed", ALL, pp_size=2, stop_at=6),  # 2
    case("resumed", ALL, tp_size=2),  # 2
]
CASES = {
    4: [
        case("pp4", ALL, pp_size=4),
        case("pp2-dp2", ALL, pp_size=2, **SGD),
        case("pp2-tp2", ALL, pp_size=2, tp_size=2),
        case("pp4-text", ["text"], pp_size=4, **SGD),  # two microbatches for four stages
        case("pp2-dp2-text", ["text"], pp_size=2, **SGD),  # one for two
        case("pp4-bf16", ALL, pp_size=4, dtype="bf16", dropout=0.1, options={"recompute": True}),
        case("tp4", ALL, tp_size=4),  # recordings on two of the ranks, a row on each
        case("rows-pp2-tp2", ALL, pp_size=2, tp_size=2, options=ROWS),
        case("rows-dp2-tp2", ALL, tp_size=2, options=ROWS | {"zero_stage": 3}, **SGD),
        RESUMED[0],
    ],
    1: [
        case("one", ALL),
        case("one-sgd", ALL, **SGD),
        *(case(f"one-{modality}", [modality], **SGD) for modality in EACH),
        case("one-dropout", ALL, dropout=0.1),
        case("one-bf16", ALL, dtype="bf16", dropout=0.1),
        RESUMED[1],
    ],
    2: [
        *(case(f"dp2-zero{stage}", ALL, options={"zero_stage": stage}, **SGD) for stage in range(4)),
        case("tp2", ALL, tp_size=2, **SGD),
        case("tp2-text", ["text"], tp_size=2, options=COMPILED, **SGD),
        case("pp2", ALL, pp_size=2),
        case("pp2-image", ["image"], pp_size=2, options=COMPILED, **SGD),
        *(case(f"pp2-{modality}", [modality], pp_size=2, **SGD) for modality in ("audio", "text")),
        case("pp2-dropout", ALL, pp_size=2, dropout=0.1, options={"recompute": True, "teacher": "gathered"}),
        case("rows-tp2", ALL, tp_size=2, options=ROWS | {"recompute": True}),
        case("rows-tp2-dropout", ALL, tp_size=2, dropout=0.1, options=ROWS),
        case("pp2-poisoned", ALL, pp_size=2, poisoned=3),
        case("pp2-stopped", ALL, pp_size=2, stop_at=3),
        case("pp2-stopped", ALL, pp_size=2),
        RESUMED[2],
        RESUMED[3],
        case("hanging", ["text"], pp_size=2, hang=True, options={"timeout_seconds": 5}),  # ends its processes
    ],
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """What every rank printed, by number of processes; the runs lie in ``directory``."""
    out = tmp_path_factory.mktemp("pipelines")
    printed = {
        number: run_ranks("tests.distributed.pipeline_worker", [str(out), *map(json.dumps, cases)], number)
        for number, cases in CASES.items()
    }
    return printed | {0: [str(out)]}


@pytest.fixture(scope="module")
def directory(outputs: dict[int, list[str]]) -> Path:
    return Path(outputs[0][0])


def records(run_dir: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record for record in lines if record["kind"] == kind]


def differences(run_dir: Path, expected_dir: Path, kind: str) -> dict[str, float]:
    """Largest relative difference of every figure over all lines of a kind."""
    worst: dict[str, float] = {}
    for record, expected in zip(records(run_dir, kind), records(expected_dir, kind), strict=True):
        assert record.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, float) and name not in TIMING and not name.endswith("_per_second"):
                off = abs(record[name] - value) / max(abs(value), 1e-12)
                worst[name] = max(worst.get(name, 0.0), off)
    return worst


def tensor_differences(run_dir: Path, expected_dir: Path) -> dict[str, float]:
    """Largest difference of every weight, moment and average, relative to the tensor's largest magnitude."""
    ours, theirs = FragmentReader(locate(run_dir)), FragmentReader(locate(expected_dir))
    assert ours.manifest.shapes == theirs.manifest.shapes
    worst = {}
    for key in (f"{kind}/{name}" for kind in KINDS for name in theirs.manifest.shapes):
        assert (key in ours) == (key in theirs), key
        if key in theirs:
            value, expected = ours.whole(key), theirs.whole(key)
            worst[key] = ((value - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
    return worst


LAYOUTS = [
    *((layout, "one") for layout in ("pp4", "pp2-tp2", "pp2", "tp4", "rows-pp2-tp2", "rows-tp2", "resumed")),
    ("pp2-dropout", "one-dropout"),
    *((f"dp2-zero{stage}", "one-sgd") for stage in range(4)),
    *((layout, "one-sgd") for layout in ("tp2", "pp2-dp2", "rows-dp2-tp2")),
    *((f"pp2-{modality}", f"one-{modality}") for modality in EACH),
    ("tp2-text", "one-text"),
    ("pp4-text", "one-text"),
    ("pp2-dp2-text", "one-text"),
]


@pytest.mark.parametrize(("layout", "expected"), LAYOUTS)
def test_losses_and_norms_equal_one_process(directory: Path, layout: str, expected: str) -> None:
    """In all of them the norm, too, and with it a gradient's scale."""
    worst = differences(directory / layout, directory / expected, "train")
    assert len(records(directory / layout, "train")) == STEPS
    assert {"loss", "grad_norm", "lr", "ema_decay"} <= worst.keys()
    assert max(worst.values()) < 1e-5, worst


@pytest.mark.parametrize(("layout", "expected"), LAYOUTS)
def test_every_tensor_equals_one_process(directory: Path, layout: str, expected: str) -> None:
    worst = tensor_differences(directory / layout, directory / expected)
    assert max(worst.values()) < 1e-5, {key: value for key, value in worst.items() if value >= 1e-5}


@pytest.mark.parametrize("layout", ["pp4", "pp2", "pp2-tp2", "tp4", "rows-pp2-tp2", "rows-tp2"])
def test_figures_of_all_stages_reach_the_log(directory: Path, layout: str) -> None:
    worst = differences(directory / layout, directory / "one", "health")
    assert {
        f"{modality}_{part}_effective_rank" for modality in EACH for part in ("frontend", "student", "teacher")
    } <= (worst.keys())
    assert max(worst.values()) < 1e-5, worst


def test_scales_that_stages_share_learn(directory: Path) -> None:
    """Else their equality would say nothing: they move, and by gradients of every stage's blocks."""
    reader = FragmentReader(locate(directory / "pp4"))
    for modality in EACH:
        moment = reader.whole(f"exp_avg/frontends.{modality}.alibi_scale").flatten(1)
        assert (moment.abs().amax(dim=1) > 0).all()
    assert len(reader.whole("student/frontends.image.alibi_scale")) == 1 + DEPTH


def test_bf16_equals_one_process(directory: Path) -> None:
    """Four stages with dropout and recomputation; only the shared scales' gradients are rounded at another place."""
    worst = differences(directory / "pp4-bf16", directory / "one-bf16", "train")
    assert max(worst.values()) < 2e-3, worst


def test_resumed_pipeline_is_the_unbroken_one_bit_for_bit(directory: Path) -> None:
    assert [path.name for path in complete_checkpoints(directory / "pp2-stopped")] == [
        "step-00000003",
        f"step-{STEPS:08d}",
    ]
    assert max(tensor_differences(directory / "pp2-stopped", directory / "pp2").values()) == 0


def test_resumed_run_went_through_all_layouts(directory: Path) -> None:
    checkpoints = complete_checkpoints(directory / "resumed")
    layouts = [(m.step, m.tp_size, m.pp_size) for m in (FragmentReader(path).manifest for path in checkpoints)]
    assert layouts == [(4, 1, 1), (6, 1, 2), (STEPS, 2, 1)]  # the newest three are kept


def test_bad_step_is_skipped_on_all_stages(directory: Path) -> None:
    """Gradients that are not finite in one stage's parameters first; losses that are not never reach the log."""
    events = [record["message"] for record in records(directory / "pp2-poisoned", "event")]
    assert len([message for message in events if "step skipped" in message]) == 1
    assert len(records(directory / "pp2-poisoned", "train")) == STEPS
    assert len((directory / "pp2-poisoned" / "quarantine.jsonl").read_text().splitlines()) == 1  # of both stages
    reader = FragmentReader(locate(directory / "pp2-poisoned"))
    assert (reader.manifest.step, reader.manifest.positions["image"]) == (STEPS, 4 * (STEPS + 1))
    assert all(torch.isfinite(reader.whole(f"{kind}/encoder.blocks.3.mlp.up.weight")).all() for kind in KINDS)


def test_stages_have_blocks_of_their_own(outputs: dict[int, list[str]]) -> None:
    """Four stages of one block each, two of two, or of three and one beside a large decoder."""
    found = {
        (number, run): [json.loads(line.partition(f"BLOCKS {run} ")[2].splitlines()[0]) for line in outputs[number]]
        for number, run in ((4, "pp4"), (4, "pp2-tp2"), (2, "pp2"), (2, "pp2-image"), (2, "pp2-text"))
    }
    assert found[4, "pp4"] == [[0], [1], [2], [3]]
    assert found[4, "pp2-tp2"][0] == found[4, "pp2-tp2"][1] != found[4, "pp2-tp2"][2]  # tp is fastest
    assert found[2, "pp2-image"] == [[0, 1], [2, 3]]
    assert found[2, "pp2-text"] == [[0, 1, 2], [3]]
    assert [number for blocks in found[2, "pp2"] for number in blocks] == list(range(DEPTH))


SHARED = [
    (4, "pp2-tp2"),
    (4, "tp4"),
    (4, "rows-pp2-tp2"),
    (4, "rows-dp2-tp2"),
    (2, "tp2"),
    (2, "rows-tp2"),
    (2, "rows-tp2-dropout"),
]


@pytest.mark.parametrize(("number", "run"), SHARED)
def test_ranks_that_share_a_model_agree_on_what_is_whole(outputs: dict[int, list[str]], number: int, run: str) -> None:
    """To the bit: a gradient that is not summed over them, or a draw that is not common, sets them apart."""
    tp_size, found = int(run.partition("tp")[2][0]), figures(outputs[number], run)
    assert [one["apart"] for one in found] == [0] * number
    assert all(len({str(one["split"]) for one in model}) == tp_size for model in models(found, tp_size))
    assert all(len({str(one["alike"]) for one in model}) == 1 for model in models(found, tp_size))
    for num_rows in range(9):
        counts = [one["rows"][num_rows] for one in found[:tp_size]]
        assert sum(counts) == num_rows
        assert max(counts) - min(counts) <= 1


def figures(outputs: list[str], run: str) -> list[dict]:
    """What every rank printed of a run with tensor parallelism."""
    return [json.loads(text.partition(f"TENSOR PARALLEL {run} ")[2].splitlines()[0]) for text in outputs]


def models(ranks: list[dict], tp_size: int) -> list[list[dict]]:
    """Ranks that share a model are neighbours."""
    return [ranks[start : start + tp_size] for start in range(0, len(ranks), tp_size)]


def test_dropout_of_split_rows_trains_alike(directory: Path) -> None:
    """Other masks than one process draws, of the same kind."""
    worst = differences(directory / "rows-tp2-dropout", directory / "one-dropout", "train")
    assert 0 < worst["loss"] < 0.1


def test_hanging_stage_is_named(outputs: dict[int, list[str]]) -> None:
    """By the other, once its time limit of 5 s is over."""
    (line,) = [line for line in outputs[2][0].splitlines() if line.startswith("ERROR")]
    assert (
        "rank 0 of 2 (stage 0 of 2, dp 0, tp 0): sending a hidden state to stage 1 and waiting for gradient 0" in line
    )
    assert "Timed out waiting 5000ms" in line
