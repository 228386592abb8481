"""``d2v doctor``: what works on this machine, and how to mend what does not. No torch."""

import argparse
import socket
import sys
from pathlib import Path

from deploy.arguments import positive_int

_DESCRIPTION = """\
Check what training, preparing and exporting need on this machine; every row is a small piece of the real work.
With --distributed, under torchrun, deepspeed or srun: check all processes of a run together."""


def main(argv: list[str]) -> int:
    """Run ``d2v doctor``.

    Returns:
        0, or 1 if a row is an error.
    Raises:
        RunError: with --distributed if processes do not come, hang or fail.
    """
    command = parser()
    options = command.parse_args(argv)
    if options.run_dir is not None and not options.distributed:
        command.error("--run-dir needs --distributed")
    if options.distributed:
        from deploy.doctor.distributed import examine

        return examine(options.run_dir, options.timeout_seconds, json=options.json)
    return _examine_machine(json=options.json)


def _examine_machine(*, json: bool) -> int:
    from deploy.doctor.checks import run_checks
    from deploy.doctor.findings import as_json, failed, show, summary

    host, rows = socket.gethostname(), {}
    for name, finding in run_checks():
        rows[name] = finding
        if not json:
            show(name, finding, sys.stdout)
    print(as_json(rows, host=host) if json else f"{host}: {summary(rows.values())}")
    return int(failed(rows.values()))


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v doctor``."""
    parser = argparse.ArgumentParser(
        prog="d2v doctor", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--distributed", action="store_true", help="check the processes of a launcher together")
    parser.add_argument("--run-dir", type=Path, help="also check that all processes see this directory")
    parser.add_argument(
        "--timeout-seconds", type=positive_int, default=120, help="how long to wait for processes (default 120)"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    return parser
