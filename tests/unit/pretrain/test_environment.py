"""Every launcher's variables, as launchers really set them, and the ways in which they can be wrong."""

import pytest

from pretrain.environment import Processes, first_host, free_port, read_environment, tasks_of_node
from pretrain.errors import RunError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "1234",
}
DEEPSPEED = TORCHRUN | {"LOCAL_SIZE": "4", "CROSS_RANK": "1", "CROSS_SIZE": "2"}
DEEPSPEED.pop("LOCAL_WORLD_SIZE")
MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "1234",
}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_JOB_NODELIST": "gpu[003-004]",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


@pytest.mark.parametrize("env", [TORCHRUN, DEEPSPEED], ids=["torchrun", "deepspeed"])
def test_rank_variables(env: dict[str, str]) -> None:
    assert read_environment(env) == Processes(5, 8, 1, 4, "gpu1", 1234, "env")


def test_mpi() -> None:
    assert read_environment(MPI) == Processes(5, 8, 1, 4, "gpu1", 1234, "mpi")


def test_slurm() -> None:
    port = 15_000 + 8 * 77
    assert read_environment(SLURM) == Processes(6, 7, 2, 3, "gpu003", port, "slurm")


def test_slurm_takes_another_port_after_a_requeue() -> None:
    first, again = read_environment(SLURM), read_environment(SLURM | {"SLURM_RESTART_COUNT": "1"})
    assert again.master_port == first.master_port + 1


@pytest.mark.parametrize("job", [1, 1874, 1875, 123_456_789])
def test_slurm_ports_lie_below_those_of_clients(job: int) -> None:
    assert 15_000 <= read_environment(SLURM | {"SLURM_JOB_ID": str(job)}).master_port < 30_000


def test_the_batch_script_may_choose_address_and_port() -> None:
    processes = read_environment(SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "2000"})
    assert (processes.master_addr, processes.master_port) == ("10.0.0.1", 2000)


def test_a_step_smaller_than_its_job_counts() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "gpu004"}
    processes = read_environment(SLURM | step | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"})
    assert (processes.world_size, processes.local_size, processes.master_addr) == (2, 2, "gpu004")


def test_order_is_rank_mpi_slurm_single() -> None:
    everything = SLURM | MPI | TORCHRUN
    assert read_environment(everything).launcher == "env"
    everything.pop("RANK")
    assert read_environment(everything).launcher == "mpi"
    everything.pop("OMPI_COMM_WORLD_RANK")
    assert read_environment(everything).launcher == "slurm"
    everything.pop("SLURM_PROCID")
    assert read_environment(everything).launcher == "single"


MPI_IN_SLURM = SLURM | MPI | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}
ARRAY = SLURM | {"SLURM_ARRAY_JOB_ID": "75", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"}
TORCHRUN_IN_SLURM = SLURM | TORCHRUN | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}
PORT = 15_000 + 8 * 77


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (MPI_IN_SLURM, Processes(5, 8, 1, 4, "gpu1", 1234, "mpi")),
        (TORCHRUN_IN_SLURM, Processes(5, 8, 1, 4, "gpu1", 1234, "env")),
        (ARRAY, Processes(6, 7, 2, 3, "gpu003", PORT, "slurm")),
        (ARRAY | {"SLURM_JOB_ID": "78"}, Processes(6, 7, 2, 3, "gpu003", PORT + 8, "slurm")),
        (ARRAY | {"SLURM_RESTART_COUNT": "3"}, Processes(6, 7, 2, 3, "gpu003", PORT + 3, "slurm")),
        (SLURM | {"SLURM_STEP_ID": "3"}, Processes(6, 7, 2, 3, "gpu003", PORT, "slurm")),
    ],
    ids=["mpirun in a job", "srun torchrun", "array", "array's next element", "array, requeued", "later step"],
)
def test_jobs_within_jobs(env: dict[str, str], expected: Processes) -> None:
    """In mpirun's ranks SLURM_PROCID is that of its daemon; of torchrun's, that of the agent."""
    assert read_environment(env) == expected


def without(env: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in names}


SHELLS = {
    "no launcher": {},
    "salloc": without(SLURM, "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "sbatch script": without(SLURM, "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS") | {"SLURM_PROCID": "0"},
    "salloc, interactive step": SLURM | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    "srun --pty bash": SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
}


@pytest.mark.parametrize("env", SHELLS.values(), ids=SHELLS)
def test_a_shell_is_a_single_process(env: dict[str, str]) -> None:
    processes = read_environment(env)
    assert processes == Processes(0, 1, 0, 1, "127.0.0.1", processes.master_port, "single")
    assert 1024 <= processes.master_port < 65_536


def test_a_world_of_one_needs_no_address() -> None:
    processes = read_environment({"RANK": "0", "WORLD_SIZE": "1"})
    assert (processes.world_size, processes.local_size, processes.master_addr) == (1, 1, "127.0.0.1")
    assert read_environment({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "77"}).master_port == 77


def test_mpirun_on_one_machine_needs_no_address() -> None:
    env = without(MPI, "MASTER_ADDR", "MASTER_PORT") | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}
    assert read_environment(env).master_addr == "127.0.0.1"


def test_free_ports_can_be_bound_and_differ() -> None:
    assert len({free_port() for _ in range(5)}) > 1


@pytest.mark.parametrize(
    ("env", "changes", "names"),
    [
        (TORCHRUN, {"WORLD_SIZE": None}, ["WORLD_SIZE", "not set"]),
        (TORCHRUN, {"LOCAL_RANK": None}, ["LOCAL_RANK", "not set"]),
        (TORCHRUN, {"MASTER_ADDR": None}, ["MASTER_ADDR", "not set"]),
        (TORCHRUN, {"MASTER_ADDR": ""}, ["MASTER_ADDR", "not set"]),
        (TORCHRUN, {"RANK": ""}, ["RANK", "not set"]),
        (TORCHRUN, {"RANK": "8"}, ["RANK is 8", "WORLD_SIZE is 8"]),
        (TORCHRUN, {"RANK": "-1"}, ["RANK is -1"]),
        (TORCHRUN, {"RANK": "two"}, ["RANK", "'two'"]),
        (TORCHRUN, {"LOCAL_RANK": "4"}, ["LOCAL_RANK is 4", "4 processes"]),
        (TORCHRUN, {"LOCAL_WORLD_SIZE": "9"}, ["9 processes", "WORLD_SIZE is 8"]),
        (TORCHRUN, {"MASTER_PORT": "70000"}, ["MASTER_PORT is 70000"]),
        (MPI, {"OMPI_COMM_WORLD_SIZE": None}, ["OMPI_COMM_WORLD_SIZE", "not set"]),
        (MPI, {"MASTER_ADDR": None}, ["MASTER_ADDR", "not set"]),
        (MPI, {"OMPI_COMM_WORLD_RANK": "9"}, ["OMPI_COMM_WORLD_RANK is 9"]),
        (SLURM, {"SLURM_LOCALID": None}, ["SLURM_LOCALID", "not set"]),
        (SLURM, {"SLURM_NODEID": "2"}, ["SLURM_NODEID is 2", "2 nodes"]),
        (SLURM, {"SLURM_LOCALID": "3"}, ["SLURM_LOCALID is 3", "3 processes"]),
        (SLURM, {"SLURM_STEP_TASKS_PER_NODE": "many"}, ["SLURM_STEP_TASKS_PER_NODE", "'many'"]),
        (SLURM, {"SLURM_STEP_NODELIST": None, "SLURM_JOB_NODELIST": None}, ["SLURM_JOB_NODELIST", "not set"]),
        (SLURM, {"SLURM_STEP_NODELIST": "[]"}, ["SLURM_STEP_NODELIST", "MASTER_ADDR"]),
        (SLURM, {"SLURM_PROCID": "7"}, ["SLURM_PROCID is 7"]),
    ],
)
def test_contradictions_are_named(env: dict[str, str], changes: dict[str, str | None], names: list[str]) -> None:
    wrong = {name: value for name, value in (env | changes).items() if value is not None}
    with pytest.raises(RunError) as error:
        read_environment(wrong)
    assert all(name in str(error.value) for name in names), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("login1", "login1"),
        ("login1,gpu2", "login1"),
        ("gpu[003-005,9],login1", "gpu003"),
        ("gpu[9,003-005]", "gpu9"),
        ("rack[0-1]n[03,4]-ib0,x", "rack0n03-ib0"),
        ("n[08-11]", "n08"),
        ("node-7.cluster.org", "node-7.cluster.org"),
    ],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_tasks_of_node() -> None:
    assert [tasks_of_node("4(x2),3,2(x1)", node) for node in range(4)] == [4, 4, 3, 2]
