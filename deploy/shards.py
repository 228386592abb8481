"""``d2v shards index / info / verify / preview PATH``: tools for tar shards."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from deploy.arguments import positive_int, workers_parser
from deploy.progress import Progress, counted, readable_bytes
from pretrain.recipes.registry import RECIPES

MODALITIES = ("image", "audio", "text")


def main(argv: list[str]) -> int:
    """Run one tool; returns the exit status: 1 if ``verify`` found damage.

    Raises:
        DataError: for shards that cannot be used.
    """
    arguments = parser().parse_args(argv)
    tools: dict[str, Callable[[argparse.Namespace], int]] = {
        "index": _index,
        "info": _info,
        "verify": _verify,
        "preview": _preview,
    }
    return tools[arguments.tool](arguments)


def _index(arguments: argparse.Namespace) -> int:
    from data_pipelines.errors import DataError
    from data_pipelines.jobs import Advance, run_jobs
    from data_pipelines.shards.index import build_index, read_index, write_index
    from data_pipelines.shards.paths import expand_path

    shards = expand_path(arguments.path)

    def index_one(job: int, advance: Advance) -> tuple[int, bool]:
        shard = shards[job]
        advance(shard.stat().st_size)
        if not arguments.force:
            try:
                return len(read_index(shard)), False
            except DataError:
                pass  # missing or of no use: that is what this command mends
        index = build_index(shard)
        write_index(shard, index)
        return len(index), True

    size = sum(shard.stat().st_size for shard in shards)
    with Progress("index", size, "B") as progress:
        done = run_jobs(index_one, len(shards), num_workers=arguments.workers, report=progress)
    num_new = sum(is_new for _, is_new in done)
    num_samples = sum(num for num, _ in done)
    print(
        f"{arguments.path}: {counted(num_samples, 'sample')} in {counted(len(shards), 'shard')}; "
        f"{num_new:,} indexed now, {len(shards) - num_new:,} had an index"
    )
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from deploy.shards_info import describe_shards

    print(*describe_shards(arguments.path), sep="\n")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from data_pipelines.jobs import Advance, run_jobs
    from data_pipelines.shards.paths import expand_path
    from data_pipelines.shards.verify import Verdict, verify_shard

    shards = expand_path(arguments.path)
    sizes = [shard.stat().st_size for shard in shards]

    def verify_one(job: int, advance: Advance) -> Verdict:
        verdict = verify_shard(shards[job])
        advance(sizes[job])
        return verdict

    started = time.monotonic()
    with Progress("verify", sum(sizes), "B") as progress:
        verdicts = run_jobs(verify_one, len(shards), num_workers=arguments.workers, report=progress)
    seconds = time.monotonic() - started
    for verdict in verdicts:
        print(*verdict.problems, sep="\n", end="\n" if verdict.problems else "")
    num_samples = sum(verdict.num_samples for verdict in verdicts)
    num_shards = sum(bool(verdict.problems) for verdict in verdicts)
    read = f"{readable_bytes(sum(sizes))} read at {sum(sizes) / seconds / 2**20:,.0f} MiB/s"
    if num_shards:
        num_damaged = sum(verdict.num_damaged for verdict in verdicts)
        print(
            f"DAMAGED: {num_shards:,} of {counted(len(shards), 'shard')}, "
            f"{num_damaged:,} of {counted(num_samples, 'sample')} ({read})"
        )
        return 1
    print(f"whole: {counted(len(shards), 'shard')}, {counted(num_samples, 'sample')} ({read})")
    return 0


def _preview(arguments: argparse.Namespace) -> int:
    from deploy.preview.write import write_preview

    num = write_preview(
        arguments.path, arguments.recipe, arguments.out, modality=arguments.modality, num_samples=arguments.num
    )
    print(f"{arguments.out}: {counted(num, 'sample')} of {arguments.path} as {arguments.recipe} sees them")
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of ``d2v shards``."""
    parser = argparse.ArgumentParser(prog="d2v shards", description="Index, describe, check and show tar shards.")
    tools = parser.add_subparsers(dest="tool", metavar="TOOL", required=True)
    path = argparse.ArgumentParser(add_help=False)
    path.add_argument("path", metavar="PATH", help="a folder of shards, one .tar, or a brace range of them")
    workers = workers_parser()
    index = tools.add_parser("index", parents=[path, workers], help="write the index that shards of others lack")
    index.add_argument("--force", action="store_true", help="write all anew; what is damaged now counts as right then")
    tools.add_parser("info", parents=[path], help="what the shards hold")
    tools.add_parser("verify", parents=[path, workers], help="compare every byte with the index; exit 1 if damaged")
    preview = tools.add_parser(
        "preview", parents=[path], help="picture of images, waveforms or texts with and without their masks"
    )
    preview.add_argument("--out", type=Path, default=Path("preview.png"), help="default: preview.png")
    preview.add_argument(
        "--num", metavar="N", type=positive_int, help="samples; default: 16 images, 6 recordings or 3 texts"
    )
    preview.add_argument("--recipe", default="image-base", help=f"default: image-base; known: {', '.join(RECIPES)}")
    preview.add_argument("--modality", choices=MODALITIES, help="of the shards; needed if the recipe has several")
    return parser
