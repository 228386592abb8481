"""``make demo``: real handwritten digits -> shards -> pretraining on two processes -> kNN, probe, export, report.

Every step is a command that a user could type; it is printed before it runs. The figures are those of
digits whose strokes the encoder has never seen, and go to OUT/summary.json.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pretrain.errors import RunError

GOAL_POINTS = 20


def main(argv: list[str]) -> int:
    """Run the demo; returns the exit status of the first command that fails, else 0."""
    options = _parser().parse_args(argv)
    out: Path = options.out
    shards, run, export = out / "shards", out / "run", out / "export"
    for old in (run, export):
        shutil.rmtree(old, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    evaluation = run / "evaluation.json"
    labelled = ["--bank", f"{shards}/bank", "--test", f"{shards}/test", "--json", f"{evaluation}"]
    phases = {
        "prepare": [_d2v("prepare", "digits", f"{shards}")],
        "pretrain": [_deepspeed(options.processes, run, shards, options.seed, options.overrides)],
        "evaluate": [_d2v("eval", "all", f"{run}", *labelled)],
        "export": [_d2v("export", "hf", f"{run}", f"{export}")],
        "report": [_d2v("report", f"{run}")],
    }
    seconds = {}
    for phase, commands in phases.items():
        started = time.monotonic()
        for command in commands:
            print(f"\n$ {shlex.join(command).replace(shlex.join(_D2V), 'd2v')}", flush=True)
            status = subprocess.run(command, check=False, env=_environment()).returncode
            if status:
                return status
        seconds[phase] = round(time.monotonic() - started, 1)
    summary = _summary(json.loads(evaluation.read_text(encoding="utf-8")), seconds, run, export)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(_table(summary))
    return 0


_D2V = [sys.executable, "-m", "deploy.cli"]


def _d2v(*arguments: str) -> list[str]:
    return [*_D2V, *arguments]


def _deepspeed(processes: int, run: Path, shards: Path, seed: int, overrides: list[str]) -> list[str]:
    launcher = shutil.which("deepspeed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if launcher is None:
        raise RunError("the deepspeed launcher is not installed; run make demo, which sets everything up")
    train = ["train", "image-tiny", f"--run-dir={run}", f"--data.path={shards}/pretrain", f"--training.seed={seed}"]
    return [launcher, f"--num_gpus={processes}", "--module", "deploy.cli", *train, *overrides]


def _environment() -> dict[str, str]:
    """The launcher finds Python in this environment's bin; its own chatter is for debugging."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DEEPSPEED_LOG_LEVEL": "error",
    }


def _summary(evaluation: dict, seconds: dict[str, float], run: Path, export: Path) -> dict:
    figures = {
        f"{protocol}_{encoder}": evaluation[protocol][encoder]
        for protocol in ("knn", "probe")
        for encoder in ("pixels", "untrained", "trained")
    }
    return figures | {
        "chance": evaluation["knn"]["chance"],
        "num_test": evaluation["knn"]["num_test"],
        "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
        "report": f"{run / 'report.html'}",
        "export": f"{export}",
    }


def _table(summary: dict) -> str:
    def row(label: str, encoder: str) -> str:
        return f"  {label:<20}{100 * summary[f'knn_{encoder}']:>8.1f} %{100 * summary[f'probe_{encoder}']:>12.1f} %"

    gain = min(summary["knn_trained"] - summary[f"knn_{other}"] for other in ("untrained", "pixels"))
    seconds = summary["seconds"]
    return "\n".join(
        [
            f"\nPages stamped with digits never seen in training, {summary['num_test']} of them,"
            f" chance {100 * summary['chance']:.0f} %:",
            f"  {'':<20}{'kNN':>10}{'linear probe':>16}",
            row("raw pixels", "pixels"),
            row("untrained encoder", "untrained"),
            row("trained encoder", "trained"),
            f"  kNN gain over the better baseline: {100 * gain:+.1f} points"
            f" (goal {GOAL_POINTS}: {'reached' if 100 * gain >= GOAL_POINTS else 'missed'})",
            "seconds  " + ", ".join(f"{phase} {value:.0f}" for phase, value in seconds.items()),
            f"report   {summary['report']}",
            f"export   {summary['export']}  (AutoModel.from_pretrained)",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    parser.add_argument("--processes", type=int, default=2, help="training processes; default: 2")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training run; default: 0")
    parser.add_argument("overrides", nargs="*", help="after --: fields of the recipe, e.g. -- --training.max-steps=20")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
