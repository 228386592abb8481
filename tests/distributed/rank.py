"""What a process that ``launch`` starts does first. Imports nothing, so that its environment comes before torch."""

import os
import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def run_module(module: str, arguments: list[str], environment: dict[str, str], output: Path) -> None:
    """As ``python -m module ARGUMENTS`` in the repository; its output goes to ``output`` and ``.err``."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    for stream, path in ((sys.stdout, output), (sys.stderr, output.with_suffix(".err"))):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
