"""``d2v export hf``: a checkpoint's encoder in the formats of other libraries."""

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    """Export, and print how far the result is from our own model; returns the exit status."""
    parser = argparse.ArgumentParser(prog="d2v export", description="Convert a checkpoint's encoder for inference.")
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    hf = formats.add_parser("hf", help="a folder for transformers: AutoModel.from_pretrained(OUT)")
    hf.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="run directory or one of its checkpoints")
    hf.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist or be empty")
    hf.add_argument("--source", choices=("student", "teacher"), default="student", help="default: student")
    hf.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the stored weights; default: fp32")
    arguments = parser.parse_args(argv)

    from transformers.utils.logging import disable_progress_bar

    from deploy.export.huggingface import export

    disable_progress_bar()  # of reloading for the comparison, a matter of milliseconds
    parity = export(arguments.checkpoint, arguments.out, source=arguments.source, dtype=arguments.dtype)
    print(f"export: {arguments.out} ({parity})")
    return 0
