"""Arguments that several commands take."""

import argparse
import os
import re

from data_pipelines.errors import DataError


def positive_int(text: str) -> int:
    """A whole number from 1."""
    return _at_least(1, text)


def whole_number(text: str) -> int:
    """A whole number from 0."""
    return _at_least(0, text)


def _at_least(smallest: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if value < smallest:
        raise argparse.ArgumentTypeError(f"must be at least {smallest}, got {value}")
    return value


def positive_float(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def workers_parser() -> argparse.ArgumentParser:
    """A parent parser with ``--workers``."""
    parser = argparse.ArgumentParser(add_help=False)
    default = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=positive_int, default=default, help="processes; default: one per core")
    return parser


def part_parser() -> argparse.ArgumentParser:
    """A parent parser with ``--part``, which ``read_part`` understands."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--part",
        metavar="I/N",
        default="1/1",
        help="make every N-th shard from the I-th on, for array jobs: parts 1/N to N/N write into the same OUT, in any "
        "order or at the same time; the last one completes it",
    )
    return parser


def read_part(text: str) -> tuple[int, int]:
    """Number and count of ``I/N``.

    Raises:
        DataError: if it is something else.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise DataError(f"--part: {text!r} is not I/N with I from 1 to N, such as 3/16")
    return int(match[1]), int(match[2])


def port(text: str) -> int:
    """Number of a TCP port."""
    number = positive_int(text)
    if number > 65_535:
        raise argparse.ArgumentTypeError(f"must be at most 65535, got {number}")
    return number
