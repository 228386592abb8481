"""``python -m deploy.doctor.single MODULE:FUNCTION``: one check; its finding is the last line of standard output."""

import importlib
import json
import os
import sys
from dataclasses import asdict

from deploy.doctor.findings import Finding


def main(function: str) -> None:
    """Run a check and print what it found; whatever libraries print goes to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    os.write(answers, f"{json.dumps(asdict(_find(function)))}\n".encode())


def _find(function: str) -> Finding:
    module, _, name = function.partition(":")
    try:
        finding: Finding = getattr(importlib.import_module(module), name)()
        return finding
    except ModuleNotFoundError as error:
        return Finding("error", f"{error.name} is not installed")
    except Exception as error:  # what a library that does not work here raises may be anything
        reason = " ".join(str(error).split())
        return Finding("error", f"{type(error).__name__}: {reason}" if reason else type(error).__name__)


if __name__ == "__main__":
    main(sys.argv[1])
