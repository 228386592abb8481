"""``d2v import``: checkpoints of others as run directories of ours."""

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    """Import, and print what was found; returns the exit status."""
    arguments = parser().parse_args(argv)

    from deploy.export.fairseq_import import import_fairseq

    print(f"import: {arguments.out} ({import_fairseq(arguments.file, arguments.out, arguments.letters)})")
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v import``."""
    parser = argparse.ArgumentParser(prog="d2v import", description="Turn a checkpoint of others into one of ours.")
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    fairseq = formats.add_parser("fairseq", help="a .pt file of data2vec 2.0, pretrained or fine-tuned")
    fairseq.add_argument("file", type=Path, metavar="FILE", help="e.g. base_imagenet.pt; no code in it is run")
    fairseq.add_argument("out", type=Path, metavar="OUT", help="run directory to write; must not exist or be empty")
    fairseq.add_argument(
        "--letters", type=Path, help="dict.ltr.txt of a CTC model whose file does not name its letters"
    )
    return parser
