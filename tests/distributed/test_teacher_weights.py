"""The teacher without DeepSpeed on 1, 2 and 3 processes: gathers, equal targets in both modes, bytes."""

import json
from typing import Any

import pytest

from deploy.plan.memory import state_bytes
from pretrain.config import with_overrides
from pretrain.parallel.grid import Grid
from pretrain.recipes.registry import recipe
from tests.distributed.launch import run_ranks

ZERO_STAGES = {"flat": 1, "split": 3}
CASES = ["flat-resident", "flat-gathered", "split-resident", "split-gathered"]


@pytest.fixture(scope="module", params=[1, 2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank found; 3 does not divide the sizes."""
    out = tmp_path_factory.mktemp("teacher")
    run_ranks("tests.distributed.teacher_worker", [str(out)], request.param)
    results = json.loads((out / f"teacher-{request.param}.json").read_text())
    assert len(results) == request.param
    return results


def test_gathers_bring_what_the_shards_hold_and_no_padding(ranks: list[dict[str, Any]]) -> None:
    assert [rank["wrong_gathers"] for rank in ranks] == [[]] * len(ranks)


def test_targets_of_all_modes_and_cuts_are_bit_equal_before_and_after_an_update(ranks: list[dict[str, Any]]) -> None:
    assert [rank["differ"] for rank in ranks] == [[]] * len(ranks)


@pytest.mark.parametrize("case", CASES)
def test_every_rank_holds_its_share_in_fp32(ranks: list[dict[str, Any]], case: str) -> None:
    for rank in ranks:
        figures = rank[case]
        padding = 4 * figures["parameters"]  # less than one element of each parameter
        assert 0 <= figures["shard"] - figures["whole"] / len(ranks) < padding


@pytest.mark.parametrize("cut", ["flat", "split"])
def test_gathered_weights_are_never_more_than_a_layer_and_the_next(ranks: list[dict[str, Any]], cut: str) -> None:
    """Of the passes, the first does not know what follows and sends for nothing ahead."""
    for rank in ranks:
        resident, gathered = rank[f"{cut}-resident"], rank[f"{cut}-gathered"]
        layer, kept = gathered["largest_layer"], 96 * 4  # the extra token belongs to no layer
        assert resident["at_rest"] == resident["whole"] and gathered["at_rest"] == kept
        beyond = [more - plain for more, plain in zip(gathered["peaks"], resident["peaks"], strict=True)]
        assert layer <= beyond[0] <= 2 * layer
        assert beyond[1:] == [2 * layer] * 2
        assert gathered["at_rest"] + beyond[1] == planned(cut, len(ranks))
        assert 2 * layer + kept < gathered["whole"]


@pytest.mark.parametrize("cut", ["flat", "split"])
def test_resident_weights_fly_while_the_student_runs(ranks: list[dict[str, Any]], cut: str) -> None:
    """Were an update to wait for its all-gather, these processes would wait for each other for ever."""
    if len(ranks) > 1:
        assert all(rank[f"{cut}-in-flight"] for rank in ranks)


def planned(cut: str, num_ranks: int) -> int:
    """Bytes of the teacher's gathered weights as ``d2v plan`` reckons them."""
    overrides = [f"--parallel.zero-stage={ZERO_STAGES[cut]}", "--parallel.teacher=gathered"]
    overrides += ["--precision.dtype=fp32", "--training.global-batch-size=6"]
    config = with_overrides(recipe("image-tiny"), overrides)
    return state_bytes(config, Grid(num_ranks, 1)).teacher_weights
