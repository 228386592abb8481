"""What of the layouts one device can run: ZeRO 0 to 3, offload, recomputation, compiled blocks, with real kernels.

On a machine with a GPU that is nccl and its kernels. The same runs on a CPU show that this file works.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.distributed.launch import run_ranks, train_records
from tests.distributed.synthetic import STEPS
from tests.distributed.test_waits import CASES as WAITS
from tests.distributed.test_waits import IN_HOST_MEMORY, parse

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing was tested on a GPU")
PLAIN = {"zero_stage": 0}
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("fp32", PLAIN),
    "compiled": ("fp32", {"zero_stage": 2, "compile": "blocks", "recompute": True}),
    "autocast": ("bf16", PLAIN),
    "recompute": ("bf16", {"zero_stage": 1, "recompute": True}),
    "offload": ("bf16", {"zero_stage": 2, "offload": "optimizer"}),
    "split": ("bf16", {"zero_stage": 3}),
}


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The device and where the runs lie."""
    out, device = tmp_path_factory.mktemp("device"), request.param
    cases = [
        json.dumps({"run": name, "modalities": ["image", "audio"], "dtype": dtype, "options": options})
        for name, (dtype, options) in CASES.items()
    ]
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        run_ranks("tests.distributed.pipeline_worker", [str(out), *cases], 1)
    yield device, out


@pytest.mark.parametrize("case", CASES.keys() - {"plain"})
def test_losses_and_norms_follow_the_plain_run(runs: tuple[str, Path], case: str) -> None:
    device, out = runs
    limit = {"fp32": {"cpu": 1e-5, "cuda": 1e-3}[device], "bf16": 0.03}[CASES[case][0]]
    plain, records = train_records(out / "plain"), train_records(out / case)
    assert len(records) == STEPS
    for expected, record in zip(plain, records, strict=True):
        for name in ("loss", "image_target_spread", "audio_target_spread"):
            assert abs(record[name] / expected[name] - 1) < limit, (name, record["step"])


def test_runs_were_where_they_should_be(runs: tuple[str, Path]) -> None:
    device, out = runs
    where = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    for case in CASES:
        first = json.loads((out / case / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
        assert f"on 1 x {where}" in first["message"]


@NO_GPU
@pytest.mark.parametrize("case", [case for case, number in WAITS if number == 1])
def test_host_waits_for_a_gpu_where_deepspeed_does(tmp_path: Path, case: str) -> None:
    """Other places in DeepSpeed than on a CPU are its own affair; of ours there may be none."""
    printed = run_ranks("tests.distributed.waits_worker", [str(tmp_path), parse(case)], 1)[0]
    (line,) = [line for line in printed.splitlines() if line.startswith("PLACES ")]
    ours = {place for places in list(json.loads(line[7:]).values())[:3] for place in places if "deepspeed" not in place}
    assert ours <= IN_HOST_MEMORY | WAITS[case, 1]
