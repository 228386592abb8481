"""Checkpoints of every layout export alike, in a process that belongs to no group."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from deploy.cli import main
from deploy.export.fairseq_file import read_file
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.store import locate
from tests.distributed.launch import run_ranks

OPTIONS = ["--training.max-steps=3", "--schedule.warmup-steps=1", "--training.global-batch-size=8"]
OPTIONS += ["--training.microbatch-size=4", "--precision.dtype=fp32", "--ema.start=0.8", "--ema.end=0.8"]
OPTIONS += ["--logging.tensorboard=false", "--data.num-workers=0"]
LAYOUTS = {
    "one": [],
    "tensors": ["--parallel.tp-size=2"],
    "stages": ["--parallel.pp-size=2"],
    "zero3": ["--parallel.zero-stage=3"],
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, digit_shards: Path) -> dict[str, dict[str, Tensor]]:
    """By layout, all tensors of both kinds of export, of student and teacher."""
    found = {}
    for name, layout in LAYOUTS.items():
        folder = tmp_path_factory.mktemp(name)
        run = ["train", "image-tiny", f"--run-dir={folder / 'run'}", f"--data.path={digit_shards}", *OPTIONS, *layout]
        run_ranks("deploy.cli", run, 2 if layout else 1)
        assert not dist.is_initialized()
        tensors = {}
        for source in ("student", "teacher"):
            assert main(["export", "hf", str(folder / "run"), str(folder / source), "--source", source]) == 0
            tensors |= {f"{source}.{n}": t for n, t in load_file(folder / source / "model.safetensors").items()}
        assert main(["export", "fairseq", str(folder / "run"), str(folder / "fairseq.pt")]) == 0
        file = read_file(folder / "fairseq.pt")
        found[name] = tensors | file.student | {f"_ema.{n}": t for n, t in (file.teacher or {}).items()}
        manifest = Manifest.read(locate(folder / "run"))
        sizes = (manifest.tp_size, manifest.pp_size, manifest.dp_size)
        assert sizes == {"one": (1, 1, 1), "tensors": (2, 1, 1), "stages": (1, 2, 1), "zero3": (1, 1, 2)}[name]
    return found


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_layouts_export_the_same_model(exports: dict[str, dict[str, Tensor]], layout: str) -> None:
    one, other = exports["one"], exports[layout]
    assert one.keys() == other.keys()
    assert any(name.startswith("_ema.") for name in one)
    for name, tensor in one.items():
        assert torch.allclose(other[name], tensor, atol=5e-5), name
    moved = one["student.encoder.blocks.0.mlp.up.weight"] - one["teacher.encoder.blocks.0.mlp.up.weight"]
    assert moved.abs().max() > 1e-3
