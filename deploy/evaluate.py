"""``d2v eval knn / probe``: the quality of a checkpoint's frozen features."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.arguments import positive_int
from pretrain.errors import RunError

if TYPE_CHECKING:
    import torch

    from pretrain.evaluate.comparison import Comparison


def main(argv: list[str]) -> int:
    """Judge a checkpoint by one protocol, or by all in one pass, and print the tables; returns the exit status."""
    arguments = parser().parse_args(argv)

    from pretrain.evaluate import protocols
    from pretrain.evaluate.comparison import compare

    chosen = []
    if arguments.protocol in ("knn", "all"):
        chosen.append(protocols.knn(num_neighbours=arguments.k, temperature=arguments.temperature))
    if arguments.protocol in ("probe", "all"):
        chosen.append(protocols.probe(l2=arguments.l2))
    if arguments.json:
        read_evaluations(arguments.json)  # a wrong file is named now, not after the work
        if not arguments.json.parent.is_dir():
            raise RunError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    comparisons = compare(
        arguments.checkpoint,
        arguments.bank,
        arguments.test,
        chosen,
        device=chosen_device(arguments.device),
        source=arguments.source,
        baselines=arguments.baselines,
        batch_size=arguments.batch_size,
    )
    print("\n".join(table(comparison) for comparison in comparisons))
    if arguments.json:
        write_evaluations(arguments.json, comparisons)
    return 0


def table(comparison: "Comparison") -> str:
    """A comparison as a few aligned lines, baselines first."""
    settings = ", ".join(f"{name} {value:g}" for name, value in comparison.settings.items())
    rows = [("chance", comparison.chance, "")]
    if comparison.pixels is not None and comparison.untrained is not None:
        rows.append(("raw pixels", comparison.pixels, f"  ({comparison.pixels_treatment})"))
        rows.append(("untrained encoder", comparison.untrained, ""))
    rows.append(("trained encoder", comparison.trained, f"  ({comparison.source}, step {comparison.step})"))
    head = (
        f"{comparison.title} ({settings}): {comparison.num_bank} bank and {comparison.num_test} test images, "
        f"{comparison.num_classes} classes"
    )
    return "\n".join([head, *(f"  {label:<18}{100 * share:6.1f} %{note}" for label, share, note in rows)])


def write_evaluations(path: Path, comparisons: Sequence["Comparison"]) -> None:
    """Write comparisons by protocol name; what the file holds of other protocols stays.

    ``d2v report`` shows RUN/evaluation.json.

    Raises:
        RunError: if the file exists and is not such a file.
        DataError: if it cannot be written.
    """
    from data_pipelines.atomic import replacing

    evaluations = read_evaluations(path) | {item.protocol: item for item in comparisons}
    content = {name: dataclasses.asdict(item) for name, item in evaluations.items()}
    with replacing(path) as stream:
        stream.write((json.dumps(content, indent=2) + "\n").encode())


def read_evaluations(path: Path) -> dict[str, "Comparison"]:
    """What ``write_evaluations`` wrote, by protocol; nothing if there is no file.

    Raises:
        RunError: if it is another file.
    """
    from pretrain.evaluate.comparison import Comparison

    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: Comparison(**values) for name, values in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not written by d2v eval --json ({error}); remove it") from error


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v eval``."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="run directory or one of its checkpoints")
    shared.add_argument("--bank", required=True, metavar="SHARDS", help="labelled shards to learn from")
    shared.add_argument("--test", required=True, metavar="SHARDS", help="labelled shards to classify")
    shared.add_argument("--source", choices=("student", "teacher"), default="student", help="default: student")
    shared.add_argument(
        "--no-baselines",
        dest="baselines",
        action="store_false",
        help="leave out untrained encoder and raw pixels",
    )
    shared.add_argument("--json", type=Path, metavar="FILE", help="add the numbers to FILE, e.g. RUN/evaluation.json")
    shared.add_argument("--batch-size", type=positive_int, default=256, help="images encoded at once; default: 256")
    shared.add_argument("--device", help="torch device; default: the accelerator if there is one, else cpu")

    parser = argparse.ArgumentParser(
        prog="d2v eval",
        description="Judge frozen features: last block of the unmasked encoder, mean over the patches, standardised.",
    )
    kinds = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    neighbours, regression = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(add_help=False)
    neighbours.add_argument("--k", type=positive_int, default=20, help="neighbours that vote; default: 20")
    neighbours.add_argument(
        "--temperature", type=float, default=0.07, help="votes weigh exp(cosine / T); default: 0.07"
    )
    regression.add_argument("--l2", type=float, default=1e-3, help="strength of the weight penalty; default: 0.001")
    kinds.add_parser("knn", parents=[shared, neighbours], help="k nearest neighbours by cosine similarity")
    kinds.add_parser("probe", parents=[shared, regression], help="linear probe: multinomial logistic regression")
    kinds.add_parser("all", parents=[shared, neighbours, regression], help="both, encoding the images once")
    return parser


def chosen_device(name: str | None) -> "torch.device":
    """The device called ``name``, or the machine's accelerator, or the CPU.

    Raises:
        RunError: if nothing can be put there.
    """
    import torch

    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise RunError(f"--device: {name} cannot be used: {str(error).splitlines()[0]}") from error
