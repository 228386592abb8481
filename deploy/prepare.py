"""``d2v prepare KIND ...``: raw files -> shards with an index."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.config import ImageSourceConfig
from deploy.arguments import positive_int, workers_parser
from deploy.progress import Progress, counted, readable_bytes

if TYPE_CHECKING:
    from data_pipelines.shards.manifest import DatasetManifest

_MIB = 1 << 20


def main(argv: list[str]) -> int:
    """Prepare one data set; returns the exit status.

    Raises:
        DataError: for input or output that cannot be used.
    """
    arguments = _parser().parse_args(argv)
    if arguments.kind == "images":
        _images(arguments)
    else:
        _digits(arguments)
    return 0


def _images(arguments: argparse.Namespace) -> None:
    from data_pipelines.prepare.folder import write_folder
    from data_pipelines.prepare.images import plan_images

    plan = plan_images(
        arguments.source,
        arguments.out,
        shard_size_bytes=arguments.shard_size_mb * _MIB,
        max_samples_per_shard=arguments.max_samples_per_shard,
        max_pixels=arguments.max_pixels,
    )
    with Progress("prepare images", plan.total(), plan.unit) as progress:
        manifest = write_folder(plan, arguments.out, num_workers=arguments.workers, report=progress)
    _print_summary(arguments.out, manifest)


def _digits(arguments: argparse.Namespace) -> None:
    from data_pipelines.prepare.digits import BANK, PRETRAIN, TEST, plan_digits
    from data_pipelines.prepare.folder import write_folder

    for split, num_images in ((PRETRAIN, arguments.pretrain), (BANK, arguments.bank), (TEST, arguments.test)):
        plan = plan_digits(split, num_images, seed=arguments.seed)
        out = arguments.out / split.name
        with Progress(f"prepare digits, {split.name}", plan.total(), plan.unit) as progress:
            manifest = write_folder(plan, out, num_workers=arguments.workers, report=progress)
        _print_summary(out, manifest)


def _print_summary(out: Path, manifest: "DatasetManifest") -> None:
    classes = counted(manifest.num_classes, "class") if manifest.num_classes else "no labels"
    print(
        f"{out}: {counted(manifest.num_samples, 'sample')}, {classes}, {readable_bytes(manifest.size_bytes)} "
        f"in {counted(len(manifest.shards), 'shard')}, {manifest.num_rejected:,} rejected"
        + (f" (reasons in {out / 'rejected.jsonl'})" if manifest.num_rejected else "")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="d2v prepare",
        description="Raw files -> tar shards (WebDataset) with an index beside each. Run again after an interruption: "
        "finished shards are kept.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    workers = workers_parser()
    images = kinds.add_parser("images", parents=[workers], help="image files, one folder per class, or tar archives")
    images.add_argument(
        "source",
        metavar="SRC",
        type=Path,
        help="a folder of one folder per class; or one .tar (the folder of a file is its class); "
        "or a folder of .tar files, one per class",
    )
    images.add_argument("out", metavar="OUT", type=Path, help="folder for the shards")
    images.add_argument("--shard-size-mb", type=positive_int, default=256, help="MiB per shard; default: 256")
    images.add_argument("--max-samples-per-shard", type=positive_int, default=10_000, help="default: 10000")
    images.add_argument(
        "--max-pixels",
        type=positive_int,
        default=ImageSourceConfig().max_pixels,
        help="images with more are rejected; default: as data.image.max_pixels",
    )
    digits = kinds.add_parser("digits", parents=[workers], help="pages stamped with scikit-learn's handwritten digits")
    digits.add_argument("out", metavar="OUT", type=Path, help="folder for OUT/pretrain, OUT/bank, OUT/test")
    for name, number in (("pretrain", 20_000), ("bank", 4_000), ("test", 2_000)):
        digits.add_argument(f"--{name}", type=positive_int, default=number, help=f"images; default: {number}")
    digits.add_argument("--seed", type=int, default=0, help="of the pages (the split by source digit is fixed)")
    return parser
