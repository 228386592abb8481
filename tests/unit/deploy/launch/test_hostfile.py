"""Hostfile and command line of DeepSpeed's launcher on several machines, to the letter."""

import sys
from pathlib import Path

import pytest

from deploy import cli
from deploy.launch import nodes
from deploy.launch.hostfile import find_hosts, hostfile_command, node_rank
from deploy.launch.nodes import address_of, expand_nodelist
from deploy.launch.reach import check_reachable
from pretrain.errors import RunError
from pretrain.nodelist import parse_nodelist

HOSTFILE = "n0 slots=8\nn1 slots=8\n"
COMMAND = """\
{python} -m deepspeed.launcher.runner --log_level=error --hostfile={run}/launch/hostfile{which} \
--master_addr=10.0.0.1 --master_port={port} {how}--no_local_rank --module deploy.cli train image-tiny --run-dir {run} \
--config {run}/launch/config.yaml
"""


@pytest.mark.parametrize(
    ("options", "variables", "which", "port", "how"),
    [
        (["--hosts=n0,n1", "--master-port=1234"], {}, "", 1234, ""),
        (["--hosts=n[0-1]", "--ssh-port=2222", "--master-port=7"], {}, "", 7, "--ssh_port=2222 "),
        ([], {"SLURM_JOB_NODELIST": "n[0-1]", "SLURM_JOB_ID": "3"}, "", 15_024, ""),
        (["--hosts=n0,n1", "--no-ssh", "--node-rank=1"], {}, "-1", 29_500, "--no_ssh --node_rank=1 "),
        (
            ["--no-ssh"],
            {"SLURM_JOB_NODELIST": "n[0-1]", "SLURM_JOB_ID": "3", "SLURM_NODEID": "0", "SLURM_RESTART_COUNT": "2"},
            "-0",
            15_026,
            "--no_ssh --node_rank=0 ",
        ),
    ],
)
def test_dry_run(
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    variables: dict[str, str],
    which: str,
    port: int,
    how: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = [*asked, "--training.global-batch-size=16", "--gpus-per-node=8", "--master-addr=10.0.0.1", *options]
    run = tmp_path / "run"
    assert cli.main(["launch", "hostfile", *words, f"--run-dir={run}", "--dry-run"]) == 0
    expected = COMMAND.format(python=sys.executable, run=run, which=which, port=port, how=how)
    assert capsys.readouterr().out == HOSTFILE + expected
    assert not run.exists()


@pytest.mark.parametrize(("host", "flag"), [("localhost", "--no_ssh_check"), ("n7", "--force_multi")])
def test_one_host(host: str, flag: str) -> None:
    """DeepSpeed takes the only machine of a hostfile for this one, whatever its name."""
    command = hostfile_command(["train"], Path("/h"), master_addr=host, master_port=1, only_host=host)
    assert command[4:8] == ["--hostfile=/h", f"--master_addr={host}", "--master_port=1", flag]


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        (("ssh",), "pdsh is not here: install it, or run this with --no-ssh on each machine"),
        (("ssh", "pdsh"), r"n1: cannot be reached over ssh .* \(-p 7 -F mine n1: refused\); mend that"),
    ],
)
def test_every_machine_is_tried_before_any_process_waits_for_it(
    programs: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed itself tries the first machine, and fails with a traceback without pdsh."""
    refuses_n1 = (
        '#!/bin/sh\nshift 4\n[ "$5" = n1 ] && { echo "$*: refused" | sed "s/ true//" >&2; exit 255; }\nexit 0\n'
    )
    for name in programs:
        (tmp_path / name).write_text(refuses_n1)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if "pdsh" in programs else str(tmp_path))
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-F mine")
    with pytest.raises(RunError, match=words):
        check_reachable(["n0", "n1"], 7)


def test_a_port_of_its_own_for_each_run_over_ssh(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another run on the first host may have DeepSpeed's usual one."""
    words = ["--hosts=n0,n1", "--gpus-per-node=1", "--master-addr=n0", f"--run-dir={tmp_path}", "--dry-run"]
    assert cli.main(["launch", "hostfile", *asked, *words]) == 0
    command = capsys.readouterr().out
    assert "--master_port=" in command and "29500" not in command


def test_hosts_are_safe_to_give_to_ssh() -> None:
    assert find_hosts("a,b-1.cluster", {}) == ["a", "b-1.cluster"]
    for hosts, words in (("-oProxyCommand=x", "not the name"), ("a;b", "not the name"), ("a,b,a", "a is there twice")):
        with pytest.raises(RunError, match=words):
            find_hosts(hosts, {})
    with pytest.raises(RunError, match="--hosts a,b"):
        find_hosts(None, {})


def test_node_rank() -> None:
    assert node_rank(None, 2, {"SLURM_NODEID": "1"}) == 1
    assert node_rank(0, 2, {"SLURM_NODEID": "1"}) == 0
    with pytest.raises(RunError, match="--node-rank N"):
        node_rank(None, 2, {})
    with pytest.raises(RunError, match="there are 2 hosts"):
        node_rank(2, 2, {})


@pytest.mark.parametrize(
    ("nodelist", "expected"),
    [
        ("login", ["login"]),
        ("n[0-3,7]", ["n0", "n1", "n2", "n3", "n7"]),
        ("n[08-10,3],login", ["n08", "n09", "n10", "n3", "login"]),
        ("rack[1-2]-n[0-1].x", ["rack1-n0.x", "rack1-n1.x", "rack2-n0.x", "rack2-n1.x"]),
        ("a,b,a", ["a", "b", "a"]),
    ],
)
def test_nodelist(nodelist: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own parser says what scontrol says, where there is one."""
    assert parse_nodelist(nodelist) == expected
    assert expand_nodelist(nodelist) == expected
    monkeypatch.setattr(nodes.shutil, "which", lambda program: None)
    assert expand_nodelist(nodelist) == expected


@pytest.mark.parametrize("nodelist", ["", " ", "a b", "n[", "n[]", "n[2-1]", "n[a]", "a,,b", "a,"])
def test_bad_nodelist(nodelist: str) -> None:
    with pytest.raises(RunError):
        parse_nodelist(nodelist)


def test_address() -> None:
    assert address_of("localhost") == "localhost"
    with pytest.raises(RunError, match="--master-addr"):
        address_of("no-such-host.invalid")
