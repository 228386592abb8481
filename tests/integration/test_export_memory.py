"""An export holds its model once: measured as the peak of a process of its own, less what its imports take."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.recipes.registry import RECIPES
from tests.unit.deploy.export.checkpoints import write_checkpoint

PROGRAM = """
import gc, sys
from deploy.cli import main

def kibibytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

assert main(["export", "hf", sys.argv[1], sys.argv[3]]) == 0  # a small one first: whatever is imported late is there
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kibibytes("VmRSS:")
assert main(["export", "hf", sys.argv[2], sys.argv[4]]) == 0
print((kibibytes("VmHWM:") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_export_holds_its_model_once(tmp_path: Path) -> None:
    tiny = RECIPES["image-tiny"]()
    encoder = dataclasses.replace(tiny.model.encoder, dim=768, num_heads=12, depth=16)
    large = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, encoder=encoder))
    for name, config in (("tiny", tiny), ("large", large)):
        write_checkpoint(tmp_path / name, config, teacher=False)
    folders = [tmp_path / name for name in ("tiny", "large", "tiny-hf", "large-hf")]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, folders)], capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stderr
    size = (tmp_path / "large-hf" / "model.safetensors").stat().st_size
    assert size > 450e6  # large beside the few tensors under way, which a larger model has no more of
    peak = int(process.stdout.splitlines()[-1])
    assert peak < 1.3 * size, peak / size
