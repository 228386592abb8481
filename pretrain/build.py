"""``RunConfig`` -> groups -> networks -> engine -> loader -> ``Trainer``: all wiring, no loop."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from data_pipelines.atomic import replacing
from data_pipelines.loader import build_loader
from data_pipelines.mixture import Mixture
from model.data2vec import Data2Vec
from model.linear import PLAIN, LinearFactory
from pretrain.accumulation import Schedule, SequentialSchedule
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.progress import check_continues, check_fresh
from pretrain.checkpoint.state import TrainState, choose, restore, save
from pretrain.compilation import compile_blocks
from pretrain.config import RunConfig, write_yaml
from pretrain.description import describe
from pretrain.environment import Processes
from pretrain.errors import RunError
from pretrain.initial import draw, without_weights
from pretrain.masking import masking_of
from pretrain.observe.log import RunLog
from pretrain.observe.throughput import Throughput
from pretrain.optim import TEACHER_GROUP, make_optimizer
from pretrain.parallel.grid import Grid
from pretrain.parallel.groups import ProcessGroups, make_groups
from pretrain.parallel.linears import ReleasingLinears
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.watch import Watch
from pretrain.parallel.zero import Partitioning, StudentEngine, join_processes
from pretrain.preempt import StopRequest
from pretrain.preflight import check_scales, check_vocabulary
from pretrain.request import lay_out
from pretrain.task import Data2VecTask
from pretrain.trainer import Sections, Trainer
from pretrain.work import stages_of_run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(processes: Processes) -> tuple[torch.device, str]:
    """This process's device and the backend that goes with it.

    On a CPU the cores are shared out among the processes of the machine, whatever OMP_NUM_THREADS says, for torchrun
    sets it to 1 unasked; of a process that is alone it is heeded.
    """
    if torch.cuda.is_available():
        # srun --gpus-per-task=1 shows each process its own device only, as number 0
        device = torch.device("cuda", processes.local_rank if torch.cuda.device_count() > 1 else 0)
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32: in matrix products it is torch's default, here not
        return device, "nccl"
    if "OMP_NUM_THREADS" not in os.environ or processes.local_size > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes.local_size))
    return torch.device("cpu"), "gloo"


def build_trainer(
    config: RunConfig,
    run_dir: Path,
    processes: Processes,
    stop: StopRequest,
    *,
    resume: str,
    user_deepspeed: dict[str, Any] | None,
) -> Trainer:
    """Everything a run needs, ready to train.

    Args:
        config: the complete configuration.
        run_dir: where the run lives; exists and is writable.
        processes: who this process is.
        stop: set by signals.
        resume: ``auto`` goes on from the newest whole checkpoint if there is one, ``never`` starts anew and
            refuses a directory that holds checkpoints.
        user_deepspeed: a user's DeepSpeed JSON, laid over the generated one.
    Raises:
        RunError, DataError, ConfigError: for whatever cannot work, before any weight is allocated.
    """
    grid, ds_config = lay_out(config, processes.world_size, user_deepspeed)
    start = dict.fromkeys(config.model.modalities, 0)
    mixture = _check(config, grid, processes.rank)
    device, groups, watch = _join(config, grid, processes)
    checkpoint, refused, run_ids = _found(config, run_dir, groups, resume)
    if processes.rank == 0:
        _write_configuration(config, ds_config, run_dir)
    with watch.phase("building the networks"):
        engine, teacher = build_networks(config, ds_config, groups, device)
    state = restore(checkpoint, engine, teacher) if checkpoint else TrainState(positions=start)
    mixture.start_at(state.positions)
    log = RunLog(
        run_dir,
        config.logging,
        total_steps=config.training.max_steps,
        is_main=processes.rank == 0,
        run_ids=run_ids,
        first_step=state.step,
    )
    for reason in refused:
        log.event(state.step, "alarm", f"{reason}; the next save renames it to refused-...")
    log.event(state.step, "resume" if checkpoint else "start", describe(config, groups, device, checkpoint))
    dtype = DTYPES[config.precision.dtype]
    task = Data2VecTask(config.model, engine, teacher, device=device, dtype=dtype, seed=config.training.seed)
    return Trainer(
        sections=_sections(config),
        task=task,
        schedule=make_schedule(task, engine, teacher, groups, device, dtype, watch),
        engine=engine,
        teacher=teacher,
        mixture=mixture,
        groups=groups,
        watch=watch,
        log=log,
        throughput=Throughput(num_devices=groups.world_size, max_steps=config.training.max_steps),
        stop=stop,
        state=state,
        save=lambda now: save(run_dir, config, now, engine, teacher, groups, run_ids),
        device=device,
    )


def _check(config: RunConfig, grid: Grid, rank: int) -> Mixture:
    """Find what cannot work while nothing is allocated: unusable shards, too, whose indices take long to read."""
    check_vocabulary(config)
    check_scales(config)
    return build_mixture(config, grid, rank)


def _join(config: RunConfig, grid: Grid, processes: Processes) -> tuple[torch.device, ProcessGroups, Watch]:
    """Meet the other processes."""
    device, backend = choose_device(processes)
    join_processes(processes, backend)
    groups = make_groups(grid, config.parallel.timeout_seconds)
    return device, groups, Watch(groups.place, config.parallel.timeout_seconds)


def _found(
    config: RunConfig, run_dir: Path, groups: ProcessGroups, resume: str
) -> tuple[Path | None, list[str], dict[str, str]]:
    """The checkpoint to go on from, why newer ones are not whole, and the ids under which trackers know the run."""
    if resume == "never":
        check_fresh(run_dir)
    checkpoint, refused = choose(run_dir, groups)
    if checkpoint is None:
        if refused:  # to begin anew would throw away what may be mended, or what a newer release reads
            raise RunError(f"{run_dir}: no checkpoint is whole ({refused[0]}); mend one, or choose another --run-dir")
        return None, refused, {}
    check_continues(config, checkpoint)
    return checkpoint, refused, dict(Manifest.read(checkpoint).run_ids)


def _write_configuration(config: RunConfig, ds_config: dict[str, Any], run_dir: Path) -> None:
    write_yaml(config, run_dir / "config.yaml")
    with replacing(run_dir / "deepspeed.json") as stream:
        stream.write(json.dumps(ds_config, indent=2).encode() + b"\n")


def _sections(config: RunConfig) -> Sections:
    return Sections(
        optim=config.optim,
        schedule=config.schedule,
        ema=config.ema,
        training=config.training,
        checkpoint=config.checkpoint,
        health=config.health,
        logging=config.logging,
    )


def build_networks(
    config: RunConfig, ds_config: dict[str, Any], groups: ProcessGroups, device: torch.device
) -> tuple[StudentEngine, ShardedTeacher]:
    """Student under DeepSpeed with its fp32 initial weights, and the teacher as its copy."""
    linears = make_linears(groups, sequence_parallel=config.parallel.sequence_parallel)
    stage = config.parallel.zero_stage
    releases = stage == 3 and groups.tp_size == 1  # megatron's linears do
    numbers = stages_of_run(config, pp_size=groups.pp_size)[groups.pp_rank]
    dtype = DTYPES[config.precision.dtype]
    with torch.device("meta"):  # weights need memory only when they come
        teacher = Data2Vec(config.model, role="teacher", linears=linears, numbers=numbers)
        student = Data2Vec(config.model, linears=ReleasingLinears() if releases else linears, numbers=numbers)
    teacher = without_weights(teacher).to(dtype)
    held = dtype if stage > 0 else torch.float32
    initial = draw(student, config.training.seed, device, held, Partitioning(ds_config, groups))
    if config.parallel.recompute:
        student.recompute_blocks()
    if config.parallel.compile == "blocks":
        for network in (student, teacher):
            compile_blocks(network, dynamic=config.model.audio is not None)
    teacher_names = {name for name, _ in teacher.named_parameters()}
    optimizer = make_optimizer(student, teacher_names, config.optim, stage, groups.tp_group)
    autocast = dtype if stage == 0 and dtype != torch.float32 else None
    engine = StudentEngine(student, optimizer, ds_config, groups, autocast)
    engine.start_from(initial)
    own = [piece for piece in engine.fragments if piece.group == TEACHER_GROUP]
    layout, gathered = engine.groups[TEACHER_GROUP], config.parallel.gathers_teacher
    return engine, ShardedTeacher(teacher, layout, own, groups, device, gathered=gathered)


def make_schedule(
    task: Data2VecTask,
    engine: StudentEngine,
    teacher: ShardedTeacher,
    groups: ProcessGroups,
    device: torch.device,
    dtype: torch.dtype,
    watch: Watch,
) -> Schedule:
    """One microbatch after the other, or a pipeline if the model is cut into stages."""
    if groups.pp_size == 1:
        return SequentialSchedule(task, engine, watch)
    from pretrain.pipelined import PipelineSchedule  # megatron takes seconds to import

    return PipelineSchedule(task, engine, teacher, groups, device=device, dtype=dtype, watch=watch)


def make_linears(groups: ProcessGroups, *, sequence_parallel: bool) -> LinearFactory:
    """Torch's own linears, or megatron's where several ranks share one model."""
    if groups.tp_size == 1:
        return PLAIN
    from pretrain.parallel.tensor import MegatronLinears  # megatron takes seconds to import

    return MegatronLinears(groups, sequence_parallel=sequence_parallel)


def build_mixture(config: RunConfig, grid: Grid, rank: int) -> Mixture:
    """Loaders of all modalities; ranks that share one model read the same samples.

    Raises:
        RunError, DataError: if the shards cannot be used, or batches do not divide.
    """
    loaders = {}
    for modality in config.model.modalities:
        microbatch_size, num_microbatches = config.microbatches(modality, grid.dp_size)
        loaders[modality] = build_loader(
            config.data,
            modality,
            seed=config.training.seed,
            masking=masking_of(config.model, modality),
            dp_rank=grid.dp_rank(rank),
            dp_size=grid.dp_size,
            microbatch_size=microbatch_size,
            num_microbatches=num_microbatches,
            pin_memory=torch.cuda.is_available(),
            timeout_seconds=config.parallel.timeout_seconds,
        )
    return Mixture(loaders)
