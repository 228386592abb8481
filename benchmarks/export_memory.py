"""Host memory of ``d2v export hf``: peak of the process against the size of the model, on Linux.

python -m benchmarks.export_memory CHECKPOINT
"""

import argparse
import resource
import sys
import tempfile
from pathlib import Path

from deploy.cli import main as d2v


def main(argv: list[str]) -> int:
    """Export into a temporary folder beside the checkpoint, print the peak; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.export_memory", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="run directory or one of its checkpoints")
    checkpoint = parser.parse_args(argv).checkpoint
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
        out = Path(folder) / "export"
        if status := d2v(["export", "hf", str(checkpoint), str(out)]):
            return status
        size = (out / "model.safetensors").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"model {size / 2**20:,.0f} MiB, peak {peak / 2**20:,.0f} MiB, imports included: {peak / size:.2f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
