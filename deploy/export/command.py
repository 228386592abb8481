"""``d2v export``: a checkpoint's encoder in the formats of other libraries."""

import argparse
from pathlib import Path

from deploy.arguments import positive_float


def main(argv: list[str]) -> int:
    """Export, and print how far the result is from our own model; returns the exit status."""
    arguments = parser().parse_args(argv)
    run = {"hf": _hf, "onnx": _program, "torch": _program, "fairseq": _fairseq}[arguments.format]
    print(f"export: {arguments.out} ({run(arguments)})")
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v export``."""
    parser = argparse.ArgumentParser(prog="d2v export", description="Convert a checkpoint for inference.")
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for add in (_add_hf, _add_onnx, _add_torch, _add_fairseq):
        add(formats)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="run directory or one of its checkpoints")
    parser.add_argument("--modality", choices=("image", "audio", "text"), help="which of a run of several")


def _add_hf(formats: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    hf = formats.add_parser("hf", help="a folder for transformers: AutoModel.from_pretrained(OUT)")
    _common(hf)
    hf.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist or be empty")
    _add_choices(hf, "of the weights")
    hf.add_argument("--tokenizer", type=Path, help="of text: folder or file; default: the folder of the data")


def _add_choices(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("--source", choices=("student", "teacher"), default="student", help="default: student")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help=f"{meaning}; default: fp32")


def _add_onnx(formats: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    onnx = formats.add_parser("onnx", help="a file for ONNX Runtime; batch and length vary")
    _add_program(onnx, "of the weights, bf16 computes in fp32", "1e-5")


def _add_torch(formats: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    torch = formats.add_parser("torch", help="a .pt2 file for torch.export.load; batch and length vary")
    _add_program(torch, "of weights and arithmetic", "1e-6")


def _add_program(parser: argparse.ArgumentParser, meaning: str, tolerance: str) -> None:
    _common(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write; must not exist")
    _add_choices(parser, meaning)
    parser.add_argument(
        "--tolerance",
        type=positive_float,
        metavar="X",
        help=f"largest difference to our model that is let through; default: {tolerance}",
    )


def _add_fairseq(formats: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    fairseq = formats.add_parser("fairseq", help="a .pt file that fairseq loads, student and teacher")
    _common(fairseq)
    fairseq.add_argument("out", type=Path, metavar="OUT", help="file to write; must not exist")


def _hf(arguments: argparse.Namespace) -> str:
    from transformers.utils.logging import disable_progress_bar

    from deploy.export.huggingface import export

    disable_progress_bar()  # of reloading for the comparison, a matter of milliseconds
    result = export(
        arguments.checkpoint,
        arguments.out,
        source=arguments.source,
        dtype=arguments.dtype,
        modality=arguments.modality,
        tokenizer=arguments.tokenizer,
    )
    return f"{result.parity}{f'; {result.missing}' if result.missing else ''}"


def _program(arguments: argparse.Namespace) -> str:
    from deploy.export.program import export

    parity = export(
        arguments.checkpoint,
        arguments.out,
        arguments.format,
        source=arguments.source,
        dtype=arguments.dtype,
        modality=arguments.modality,
        tolerance=arguments.tolerance,
    )
    return str(parity)


def _fairseq(arguments: argparse.Namespace) -> str:
    from deploy.export.fairseq_export import export_fairseq

    return export_fairseq(arguments.checkpoint, arguments.out, arguments.modality)
