"""What every launch shares: the run as it was asked for, checked, and kept in RUN/launch/. No torch."""

import argparse
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.atomic import replacing
from pretrain.checkpoint.progress import check_continues, check_fresh, is_done, newest_checkpoint
from pretrain.config import to_yaml
from pretrain.errors import RunError
from pretrain.request import Request, lay_out, read_request, request_arguments


def launch_arguments() -> argparse.ArgumentParser:
    """A parent parser with what every launch takes."""
    parser = argparse.ArgumentParser(add_help=False, parents=[request_arguments()])
    parser.add_argument("--dry-run", action="store_true", help="print the command and write nothing")
    parser.add_argument(
        "--skip-data-check", action="store_true", help="the shards are on the nodes only: do not look for them here"
    )
    return parser


@dataclass(frozen=True)
class Launch:
    """A checked run."""

    request: Request
    run_dir: Path
    """Absolute: processes may start elsewhere."""

    @property
    def folder(self) -> Path:
        """What this launch was, in the run directory."""
        return self.run_dir / "launch"

    @property
    def arguments(self) -> list[str]:
        """Of ``d2v``: all that was asked for is in files, so that no launcher's shell sees any of it.

        Not ``--resume never``, which ``prepare`` has checked: a requeued job goes on from what the first one saved.
        """
        words = ["train", self.request.recipe, "--run-dir", str(self.run_dir)]
        words += ["--config", str(self.folder / "config.yaml")]
        if self.request.deepspeed is not None:
            words += ["--deepspeed", str(self.folder / "deepspeed.json")]
        return words

    def keep(self, command: str, **files: str) -> None:
        """Write configuration, the command and whatever else it reads into ``folder``.

        Raises:
            DataError, RunError: if it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--run-dir {self.run_dir}: cannot be written: {error.strerror}") from error
        contents = {"config.yaml": to_yaml(self.request.config), "command.txt": command + "\n", **files}
        if self.request.deepspeed is not None:
            contents["deepspeed.json"] = json.dumps(self.request.deepspeed, indent=2) + "\n"
        for name, content in contents.items():
            with replacing(self.folder / name) as stream:
                stream.write(content.encode())


def prepare(options: argparse.Namespace, overrides: list[str], world_size: int) -> Launch | None:
    """Read and check what was asked for; None if the run has all its steps already, which is said.

    Raises:
        RunError, ConfigError, DataError: for whatever would fail on the nodes.
    """
    request = read_request(options, overrides)
    launch = Launch(request, request.run_dir.absolute())
    _check_path(launch.run_dir)
    lay_out(request.config, world_size, request.deepspeed)
    from pretrain.preflight import check_data, check_scales  # numpy, which help shall not wait for

    check_scales(request.config)
    if not options.skip_data_check:
        check_data(request.config)
    if request.resume == "never":
        check_fresh(launch.run_dir)
    newest = newest_checkpoint(launch.run_dir)
    if newest is not None:
        if is_done(launch.run_dir, request.config):
            print(f"{launch.run_dir} is done: it has all {request.config.training.max_steps} steps")
            return None
        if (newest / "config.yaml").is_file():  # else it is damaged, and the run will look for an older one
            check_continues(request.config, newest)
    return launch


def shown(command: list[str], environment: dict[str, str] | None = None) -> str:
    """A command line as a shell would take it, quoted, with the variables that are set for it before it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return " ".join([*variables, shlex.join(command)])


def _check_path(path: Path) -> None:
    """SLURM gives % a meaning, and DeepSpeed hands paths to the shells of other machines without quoting them.

    Raises:
        RunError: if there is such a character in the path.
    """
    wrong = sorted(set(re.findall(r"[^\w@+=:,./ -]", str(path))))
    if wrong:
        raise RunError(f"--run-dir {str(path)!r}: has {' '.join(map(repr, wrong))}, which SLURM or a shell would read")
