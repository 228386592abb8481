"""What train.sbatch does in each case, with stand-ins for SLURM's programs; the real ones are in tests/slurm."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from deploy.launch.slurm import TEMPLATES
from pretrain.environment import PREFIX_OF_MPI, TOLD_BY_LAUNCHERS

STAND_INS = {
    "srun": """
printf '%q ' srun "$@" > "$OUT/srun"
for name in MASTER_ADDR RANK OMPI_COMM_WORLD_RANK SRUN_CPUS_PER_TASK NCCL_DEBUG; do
    echo "$name=${!name}"
done > "$OUT/environment"
for name in USR1 USR2 TERM; do trap "echo $name > '$OUT/signal'; touch '$RUN/RESUME'; exit 0" $name; done
touch "$OUT/started"
eval "$BEHAVIOUR"
""",
    "scontrol": """
echo "$*" >> "$OUT/scontrol"
case "$*" in
"show hostnames n[0-1]") printf 'n0.invalid\\nn1.invalid\\n' ;;
*"show node n0.invalid") echo "NodeName=n0 CoresPerSocket=1 NodeAddr=10.0.0.7 NodeHostName=x" ;;
*"show job 7"|*"show job 6_3") echo "JobId=7 JobName=x JobState=${STATE:-RUNNING} Reason=None" ;;
"requeue 7"|"requeue 6_3") [[ -z $NO_REQUEUE ]] && kill $PPID ;;
esac
""",
}
STALE = {"RANK": "3", "MASTER_ADDR": "stale", "OMPI_COMM_WORLD_RANK": "3"}
SAVE = 'mkdir -p "$RUN/checkpoints"; echo step-00000010 > "$RUN/checkpoints/latest"; '
STOPPED = SAVE + 'touch "$RUN/RESUME"'


class Attempt:
    """One execution of the batch script by a pretended SLURM."""

    def __init__(self, folder: Path) -> None:
        self.out, self.run_dir = folder / "out", folder / "run dir"
        self.out.mkdir()
        for name, text in STAND_INS.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}")
            (folder / name).chmod(0o755)
        self.variables = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "OUT": str(self.out),
            "RUN": str(self.run_dir),
            "D2V_RUN_DIR": str(self.run_dir),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[0-1]",
        }

    def start(self, behaviour: str = "true", **variables: str) -> subprocess.Popen[str]:
        for path in self.out.iterdir():
            path.unlink()
        command = [
            "bash",
            str(TEMPLATES / "train.sbatch"),
            "train",
            "image-tiny",
            "--run-dir",
            str(self.run_dir),
            "$A;b",
        ]
        environment = self.variables | {"BEHAVIOUR": behaviour} | variables
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, behaviour: str = "true", **variables: str) -> tuple[int, str]:
        """Exit status, and all that was said."""
        process = self.start(behaviour, **variables)
        said, _ = process.communicate(timeout=20)
        return process.returncode, said

    @property
    def requeued(self) -> bool:
        return "requeue 7" in (self.out / "scontrol").read_text().splitlines()


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


def test_srun_line(attempt: Attempt, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.write_text(
        'SRUN_ARGS=(--container-image="/images/a b.sqsh")\nTASK_WRAPPER=(apptainer exec --nv x.sif)\n'
        "D2V_PYTHON=/venv/bin/python\nexport NCCL_DEBUG=WARN\n"
    )
    status, said = attempt.run(D2V_SITE=str(site), SLURM_CPUS_PER_TASK="12", **STALE)
    line = (attempt.out / "srun").read_text().strip()
    run = str(attempt.run_dir).replace(" ", "\\ ")
    assert status == 0
    assert line == (
        "srun --kill-on-bad-exit=1 --label --container-image=/images/a\\ b.sqsh apptainer exec --nv x.sif "
        f"/venv/bin/python -m deploy.cli train image-tiny --run-dir {run} \\$A\\;b"
    )
    assert line in said
    environment = (attempt.out / "environment").read_text().split()
    assert environment[:3] == ["MASTER_ADDR=10.0.0.7", "RANK=", "OMPI_COMM_WORLD_RANK="]
    assert environment[3:] == ["SRUN_CPUS_PER_TASK=12", "NCCL_DEBUG=WARN"]


def test_without_a_site(attempt: Attempt) -> None:
    attempt.run()
    assert " --label python3 -m deploy.cli train " in (attempt.out / "srun").read_text()


def test_array_elements_have_a_directory_and_a_seed_each(attempt: Attempt) -> None:
    attempt.run(SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID="3")
    line = (attempt.out / "srun").read_text().strip()
    assert line.endswith(str(attempt.run_dir).replace(" ", "\\ ") + "/6_3 --training.seed 3")
    assert (attempt.run_dir / "6_3" / "launch" / "attempts").read_text() == "6_3 0 none\n"


def test_array_elements_are_requeued_by_their_own_ids(attempt: Attempt) -> None:
    """SLURM_JOB_ID of the last one is the array's: all elements would be shown and requeued."""
    status, said = attempt.run(
        STOPPED.replace("$RUN", "$RUN/6_3"), SLURM_JOB_ID="6", SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID="3"
    )
    asked = (attempt.out / "scontrol").read_text().splitlines()
    assert (status, asked[-2:]) == (0, ["--oneliner show job 6_3", "requeue 6_3"]), said


def test_all_that_other_launchers_say_is_forgotten() -> None:
    (line,) = [one for one in (TEMPLATES / "train.sbatch").read_text().splitlines() if one.startswith("unset ")]
    assert line.split()[1:] == [*TOLD_BY_LAUNCHERS, f'"${{!{PREFIX_OF_MPI}@}}"']


@pytest.mark.parametrize(
    ("behaviour", "variables", "status", "requeued"),
    [
        ('touch "$RUN/DONE"', {}, 0, False),
        ("exit 3", {}, 3, False),
        (STOPPED, {}, 0, True),
        (STOPPED + "; exit 143", {}, 0, True),  # saved, whatever became of the processes then
        (STOPPED, {"STATE": "CANCELLED"}, 1, False),  # scancel: the user does not want it back
        (STOPPED, {"NO_REQUEUE": "1"}, 1, False),
        (STOPPED, {"SLURM_RESTART_COUNT": "19"}, 0, True),
        (STOPPED, {"SLURM_RESTART_COUNT": "20"}, 1, False),
        (STOPPED, {"SLURM_RESTART_COUNT": "2", "D2V_MAX_RESTARTS": "2"}, 1, False),
        ('touch "$RUN/RESUME"', {}, 0, True),  # asked to stop before the first step
        ('touch "$RUN/RESUME"', {"D2V_MAX_STALLED": "1"}, 1, False),
        (SAVE + "exit 5", {}, 0, True),  # a GPU may have failed
        (SAVE + "exit 5", {"D2V_RETRY": "0"}, 5, False),
        (SAVE + 'touch "$RUN/FAILED"; exit 5', {}, 5, False),  # a restart would fail again
    ],
)
def test_requeue(attempt: Attempt, behaviour: str, variables: dict[str, str], status: int, requeued: bool) -> None:
    seen, said = attempt.run(behaviour, **variables)
    assert ("is not requeued" in said) == (variables.get("STATE", "RUNNING") != "RUNNING" and "RESUME" in behaviour)
    assert (seen, attempt.requeued and "NO_REQUEUE" not in variables) == (status, requeued), said


def test_attempts_without_progress_end(attempt: Attempt) -> None:
    """Also when SLURM itself requeues, after the failure of a node."""
    assert attempt.run(STOPPED)[0] == 0
    assert attempt.run("kill -9 $$", SLURM_RESTART_COUNT="1")[0] == 137
    status, said = attempt.run("true", SLURM_RESTART_COUNT="2")
    assert (status, (attempt.out / "srun").exists()) == (0, True), said
    status, said = attempt.run("true", SLURM_RESTART_COUNT="3")
    assert (status, (attempt.out / "srun").exists()) == (1, False)
    assert "2 attempts in a row brought no newer checkpoint than step-00000010" in said
    assert attempt.run("true", SLURM_JOB_ID="8", SLURM_RESTART_COUNT="0")[0] == 0  # submitted anew


def test_old_markers_do_not_count(attempt: Attempt) -> None:
    attempt.run_dir.mkdir()
    for name in ("RESUME", "FAILED", "DONE"):
        (attempt.run_dir / name).touch()
    assert attempt.run("exit 1")[0] == 1
    assert not (attempt.run_dir / "FAILED").exists()
    assert not attempt.requeued


@pytest.mark.parametrize("name", ["USR1", "USR2", "TERM"])
def test_signals_reach_srun_and_the_script_waits(attempt: Attempt, name: str) -> None:
    process = attempt.start("for _ in {1..200}; do sleep 0.05; done")
    deadline = time.monotonic() + 20
    while not (attempt.out / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(getattr(signal, f"SIG{name}"))
    said, _ = process.communicate(timeout=20)
    assert (attempt.out / "signal").read_text() == f"{name}\n"
    assert (process.returncode, attempt.requeued) == (0, True), said


def test_a_broken_site_file_ends_the_job(attempt: Attempt, tmp_path: Path) -> None:
    status, said = attempt.run(D2V_SITE=str(tmp_path / "nowhere"))
    assert (status, (attempt.out / "srun").exists()) == (1, False)
    assert "nowhere failed" in said
