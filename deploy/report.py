"""``d2v report RUN``: one self-contained HTML page about a run."""

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    """Write the page; returns the exit status."""
    arguments = parser().parse_args(argv)
    out = arguments.out or arguments.run / "report.html"
    write_report(arguments.run, out)
    print(f"report: {out}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v report``."""
    parser = argparse.ArgumentParser(prog="d2v report", description="Write one HTML page about a run, with plots.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, as d2v train writes it")
    parser.add_argument("--out", type=Path, help="file to write; default RUN/report.html")
    return parser


def write_report(run: Path, out: Path) -> None:
    """Write the report of a run to ``out``, atomically.

    Reads RUN/metrics.jsonl, RUN/config.yaml and, if there, RUN/evaluation.json (written by ``d2v eval --json``).

    Raises:
        RunError: if one of them is missing or unreadable.
        DataError: if the page cannot be written.
    """
    from data_pipelines.atomic import replacing
    from deploy.evaluate import read_evaluations
    from deploy.report_history import read_history
    from deploy.report_page import render
    from pretrain.checkpoint.progress import read_run_config

    history = read_history(run / "metrics.jsonl")
    config = read_run_config(run)
    page = render(run, config, history, read_evaluations(run / "evaluation.json"))
    with replacing(out) as stream:
        stream.write(page.encode())
