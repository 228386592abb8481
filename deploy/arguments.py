"""Arguments that several commands take."""

import argparse
import os


def positive_int(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def workers_parser() -> argparse.ArgumentParser:
    """A parent parser with ``--workers``."""
    parser = argparse.ArgumentParser(add_help=False)
    default = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=positive_int, default=default, help="processes; default: one per core")
    return parser
