"""``d2v shards index / info / verify / preview PATH``: tools for tar shards."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from deploy.arguments import positive_int, workers_parser
from deploy.progress import Progress, counted, readable_bytes
from pretrain.recipes.registry import RECIPES


def main(argv: list[str]) -> int:
    """Run one tool; returns the exit status: 1 if ``verify`` found damage.

    Raises:
        DataError: for shards that cannot be used.
    """
    arguments = _parser().parse_args(argv)
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
    import numpy as np

    from data_pipelines.shards.index import read_index
    from data_pipelines.shards.manifest import read_manifest
    from data_pipelines.shards.paths import expand_path

    shards = expand_path(arguments.path)
    indices = [read_index(shard) for shard in shards]
    num_samples = sum(map(len, indices))
    sizes = [index.shard_size_bytes for index in indices]
    print(f"{arguments.path}: {counted(num_samples, 'sample')} in {counted(len(shards), 'shard')}")
    spread = f", {readable_bytes(min(sizes))} to {readable_bytes(max(sizes))} per shard" if len(sizes) > 1 else ""
    print(f"  size     {readable_bytes(sum(sizes))}{spread}")
    for extension in sorted({extension for index in indices for extension in index.columns}):
        columns = [index.columns[extension] for index in indices if extension in index.columns]
        number = sum(int((column.offset >= 0).sum()) for column in columns)
        total = sum(int(column.size.sum()) for column in columns)
        print(f"  .{extension:<7} {counted(number, 'member')}, {readable_bytes(total)}")
    labels = np.concatenate([index.labels for index in indices])
    counts = np.bincount(labels[labels >= 0])
    counts = counts[counts > 0]
    if len(counts):
        print(f"  labels   {counted(len(counts), 'class')}, {counts.min():,} to {counts.max():,} samples each")
    else:
        print("  labels   none")
    manifest = read_manifest(Path(arguments.path))
    if manifest is not None:
        print(f"  made by  d2v prepare {manifest.kind} from {manifest.made_from}")
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
    from deploy.preview import write_preview

    write_preview(arguments.path, arguments.recipe, arguments.num, arguments.out)
    print(f"{arguments.out}: {counted(arguments.num, 'sample')} of {arguments.path} as {arguments.recipe} sees them")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="d2v shards", description="Index, describe, check and show tar shards.")
    tools = parser.add_subparsers(dest="tool", metavar="TOOL", required=True)
    path = argparse.ArgumentParser(add_help=False)
    path.add_argument("path", metavar="PATH", help="a folder of shards, one .tar, or a brace range of them")
    workers = workers_parser()
    index = tools.add_parser("index", parents=[path, workers], help="write the index that shards of others lack")
    index.add_argument("--force", action="store_true", help="write all anew; what is damaged now counts as right then")
    tools.add_parser("info", parents=[path], help="what the shards hold")
    tools.add_parser("verify", parents=[path, workers], help="compare every byte with the index; exit 1 if damaged")
    preview = tools.add_parser("preview", parents=[path], help="contact sheet of samples with and without masks")
    preview.add_argument("--out", type=Path, default=Path("preview.png"), help="default: preview.png")
    preview.add_argument("--num", type=positive_int, default=16, help="samples; default: 16")
    preview.add_argument("--recipe", default="image-base", help=f"default: image-base; known: {', '.join(RECIPES)}")
    return parser
