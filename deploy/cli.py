"""``d2v``: finds the sub-command and runs it; imports nothing else first, so that help and signals are instant."""

import difflib
import errno
import importlib
import os
import sys

COMMANDS = {
    "prepare": ("deploy.prepare", "raw files -> shards with an index"),
    "shards": ("deploy.shards", "index, describe, verify or preview shards"),
    "train": ("pretrain.train", "pretrain a recipe; under deepspeed, torchrun or srun on many processes"),
    "launch": ("deploy.launch.command", "start a run on this machine or on others"),
    "plan": ("deploy.plan.command", "layouts of a recipe that fit a cluster: memory, time, DeepSpeed JSON"),
    "tune": ("deploy.tune", "measure the planner's best layouts on this machine"),
    "eval": ("deploy.evaluate", "k nearest neighbours or linear probe on frozen features"),
    "embed": ("deploy.embed", "features of images, recordings and texts as a file"),
    "export": ("deploy.export.command", "convert a checkpoint for inference"),
    "import": ("deploy.export.import_command", "turn a checkpoint of fairseq into one of ours"),
    "doctor": ("deploy.doctor.command", "what works on this machine or between these processes, and the fix"),
    "report": ("deploy.report", "one HTML page about a run"),
}


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: list[str] | None = None) -> int:
    """Run ``d2v ARGUMENTS``.

    Returns:
        The exit status: 0, 2 for bad input (one line on standard error), 130 for Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    arguments = sorted(arguments, key=lambda word: word.startswith("--local_rank="))  # deepspeed puts it first
    try:
        try:
            return _dispatch(arguments)
        finally:
            sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        return _fail(f"{error.filename or 'a file cannot be written'}: {error.strerror}")
    except ValueError as error:
        from data_pipelines.errors import DataError
        from model.errors import ConfigError
        from pretrain.errors import RunError

        if not isinstance(error, ConfigError | DataError | RunError):
            raise
        return _fail(str(error))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = arguments
    if name == "--version":
        from importlib.metadata import version  # 25 ms that d2v train shall not wait before it catches signals

        print(f"d2v {version('data2vec-scale')}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
        return _fail(f"unknown command {name!r}; {hint}")
    return int(importlib.import_module(COMMANDS[name][0]).main(rest))


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return f"usage: d2v COMMAND ...\n\ndata2vec 2.0 pretraining at scale\n\n{rows}\n\nd2v COMMAND --help says more."


def _fail(message: str) -> int:
    rank = os.environ.get("RANK", "0")
    print(f"d2v: error: {'' if rank == '0' else f'[rank {rank}] '}{message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
