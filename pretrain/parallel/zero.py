"""DeepSpeed (0.19.8): the only module that imports it."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.linear import cut_of
from pretrain.environment import Processes
from pretrain.optim import FILLER
from pretrain.parallel.fragments import Fragment, Stretch, split
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.zero_handles import FlatPartitions, Handles, Replicated, SplitPartitions


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed announces itself on stdout and through its logger; only warnings of ours shall be seen."""
    # it calls these at every step, and torch warns of each call
    warnings.filterwarnings("ignore", message=".*(all_gather_into|reduce_scatter)_tensor.*", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _without_shared_memory_operator() -> None:
    """Keep DeepSpeed from compiling and opening its CPU operator for all-reduces of *inference*.

    Training never calls it, yet at its start DeepSpeed would compile it (40 s, under a lock file that a killed
    process leaves behind) and open 66 MiB of /dev/shm per rank that stay there if the process is killed:
    a machine where jobs are preempted fills its memory with them.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def join_processes(processes: Processes, backend: str) -> None:
    """Start ``torch.distributed`` (and DeepSpeed's view of it) with what the launcher said."""
    # DeepSpeed takes LOCAL_RANK for the number of the device; with srun --gpus-per-task=1 that is 0 everywhere
    device = torch.cuda.current_device() if torch.cuda.is_available() else processes.local_rank
    os.environ.update(
        RANK=str(processes.rank),
        WORLD_SIZE=str(processes.world_size),
        LOCAL_RANK=str(device),
        LOCAL_SIZE=str(processes.local_size),
        MASTER_ADDR=processes.master_addr,
        MASTER_PORT=str(processes.master_port),
    )
    with _quiet():
        import deepspeed

        _without_shared_memory_operator()
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def prebuilt_operators() -> list[str]:
    """DeepSpeed's compiled operators that its installation brought along; training here uses none."""
    with _quiet():
        from deepspeed.git_version_info import installed_ops
    return [name for name, is_built in installed_ops.items() if is_built and name != "deepspeed_not_implemented"]


def leave_processes() -> None:
    """End the collectives' threads once all ranks are done; else the interpreter's exit may abort over them."""
    torch.distributed.destroy_process_group()


def abandon_processes() -> None:
    """The same in a process that fails, perhaps alone: over gloo only, for NCCL would wait for the others."""
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        leave_processes()


class _ModelParallelUnit:
    """The groups as DeepSpeed asks for them."""

    def __init__(self, groups: ProcessGroups) -> None:
        model_rank = groups.tp_rank + groups.tp_size * groups.pp_rank
        answers = {
            "data_parallel": (groups.dp_group, groups.dp_rank, groups.dp_size),
            "tensor_model_parallel": (groups.tp_group, groups.tp_rank, groups.tp_size),
            "pipeline_model_parallel": (groups.pp_group, groups.pp_rank, groups.pp_size),
            "model_parallel": (groups.model_group, model_rank, groups.tp_size * groups.pp_size),
        }
        for kind, (group, rank, size) in answers.items():
            setattr(self, f"get_{kind}_group", partial(_identity, group))
            setattr(self, f"get_{kind}_rank", partial(_identity, rank))
            setattr(self, f"get_{kind}_world_size", partial(_identity, size))


def _identity(answer: Any) -> Any:
    return answer


def _unit(groups: ProcessGroups) -> _ModelParallelUnit | None:
    return _ModelParallelUnit(groups) if groups.dp_size < groups.world_size else None


class Partitioning:
    """What each data-parallel rank keeps of the student's weights while it is made: all, at stage 3 its part.

    There it is DeepSpeed that cuts them, as it would in the engine, which leaves alone what it finds cut.
    """

    def __init__(self, config: dict[str, Any], groups: ProcessGroups) -> None:
        """Args: from ``deepspeed_config``; the data-parallel ranks."""
        self._config, self._groups = config, groups
        self._is_split = int(config["zero_optimization"]["stage"]) == 3
        self._partitioned: Any = None

    def own(self, weights: Mapping[str, Tensor]) -> dict[str, Stretch]:
        """By name what this rank keeps of whole weights; no copies of what it keeps whole."""
        flat = {name: weight.detach().flatten() for name, weight in weights.items()}
        if not self._is_split:
            return {name: Stretch(0, weight) for name, weight in flat.items()}
        layout = split([(name, tuple(weight.shape), None) for name, weight in flat.items()], self._groups.dp_size)
        return {
            place.name: Stretch(start, flat[place.name][start:stop].clone())
            for place, start, stop, _ in layout.owned(self._groups.dp_rank)
        }

    def partition(self, module: nn.Module) -> None:
        """Let go of what this rank does not keep of a module on its device, in the precision of its weights.

        All ranks call it with the same modules in the same order.
        """
        if not self._is_split:
            return
        if self._partitioned is not None:
            self._partitioned.convert_to_zero_parameters(list(module.parameters()))
            return
        unit = _unit(self._groups)
        with _quiet():
            import deepspeed

            deepspeed.zero.Init(
                module=module,
                data_parallel_group=None if unit is None else self._groups.dp_group,
                config_dict_or_path=self._config,
                mpu=unit,
            )
        self._partitioned = next(module.parameters())


class StudentEngine:
    """The student under DeepSpeed: forward, backward, step, and this rank's fp32 fragments.

    At stage 3 the student comes cut (``Partitioning``): no rank ever holds all of it. A parameter is whole only around
    its module's forward and backward, unless it is small or soon used again
    (``zero_optimization.stage3_param_persistence_threshold``, ``stage3_max_reuse_distance``; it stays whole from
    forward to backward if what lies between, counted twice, is less than the latter, 1e9 elements by default). Its
    hooks are called by the engine's forward: nothing may call the student around it. Where microbatches of several
    modalities alternate, DeepSpeed's record of the order of modules never holds, so that it gathers without
    prefetching.

    Attributes:
        groups: layout of every optimizer group.
        fragments: what this rank owns, as live views; written in place when a run is resumed.
        adam_step: updates that the optimizer has made; counted here, because its own count may be on the device.
    """

    def __init__(
        self,
        student: nn.Module,
        optimizer: torch.optim.AdamW,
        config: dict[str, Any],
        groups: ProcessGroups,
        autocast: torch.dtype | None,
    ) -> None:
        """Hand ``student`` and ``optimizer`` to DeepSpeed.

        Args:
            student: on its device, in the precision of its weights; at stage 3 cut by ``Partitioning``.
            optimizer: over the student's parameters; DeepSpeed points it at its own fp32 partitions.
            config: from ``deepspeed_config``.
            groups: the data-parallel ranks.
            autocast: precision of the arithmetic where the weights stay fp32 (bf16 at stage 0), or None.
        """
        for weight in student.parameters():  # DeepSpeed's norm counts whole parameters once, of cut ones all parts
            weight.tensor_model_parallel = cut_of(weight) is not None  # type: ignore[attr-defined]
        names: dict[Tensor, str] = {p: name for name, p in student.named_parameters() if name != FILLER}
        self._autocast = autocast
        some = next(student.parameters())
        self._device, self._dtype = some.device, some.dtype
        with _quiet():
            import deepspeed

            self._engine, *_ = deepspeed.initialize(
                model=student,
                optimizer=optimizer,
                config=config,
                dist_init_required=False,
                mpu=_unit(groups),
            )
        self._adam = optimizer
        self.adam_step = 0
        stage = int(config["zero_optimization"]["stage"])
        self._handles: Handles
        if stage == 0:
            self._handles = Replicated(optimizer, names, groups)
        elif stage < 3:
            self._handles = FlatPartitions(self._engine.optimizer, optimizer, names, groups)
        else:
            self._handles = SplitPartitions(self._engine.optimizer, optimizer, names, groups)
        self.groups, self.fragments = self._handles.groups, self._handles.fragments

    @torch.no_grad()
    def start_from(self, initial: dict[str, Stretch]) -> None:
        """Set the fp32 weights, which DeepSpeed took from the student's: those may be rounded to bf16.

        Args:
            initial: by name the fp32 weights that the student was rounded from: those that this rank owns, or more.
        Raises:
            RuntimeError: if DeepSpeed's tensors do not hold them where ``zero_handles`` looks.
        """
        for fragment in self.fragments:
            known = initial[fragment.name].between(fragment.start, fragment.stop)
            expected = known.to(fragment.master.device)
            if not torch.equal(fragment.master, expected.to(self._dtype).float()):
                raise RuntimeError(f"DeepSpeed's layout is not the expected one: {fragment.name} differs")
            fragment.master.copy_(expected)

    @property
    def module(self) -> nn.Module:
        """The student."""
        return self._engine.module

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The student's forward pass."""
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            return self._engine(*inputs, **options)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of ``loss`` (a sum over this rank's samples, divided by the global count).

        DeepSpeed averages over the ranks, so the sum over ranks is that of ``loss * dp_size``.
        """
        self._engine.backward(self.scaled(loss))

    def scaled(self, loss: Tensor) -> Tensor:
        """What DeepSpeed's average over the ranks makes ``loss`` of: for a backward pass that is not ``backward``."""
        return loss * self._engine.dp_world_size

    def expect_backward(self) -> None:
        """Before a backward pass that is not ``backward`` and does not follow its own forward pass at once.

        DeepSpeed forgets the last backward pass in the next forward pass only; else it would take the new one for a
        part of it, and not count its gradients.
        """
        self._engine.optimizer.clear_backward_seen_flag()

    def step(self, *, lr: float, eps: float) -> bool:
        """Reduce and clip the gradients and update the weights.

        The host waits for the device here, and nowhere else in a step that is not logged: DeepSpeed reads the norm
        of the gradients before it decides whether to step. What it decided costs no further wait.

        Returns:
            False if the gradient norm was not finite on any rank: then nothing has changed.
        """
        for group in self._adam.param_groups:
            group["lr"], group["eps"] = lr, eps
        self._engine.step()
        self._handles.clear_gradients()
        applied = bool(self._engine.was_step_applied())
        self.adam_step += applied
        return applied

    def gradient_norm(self) -> float:
        """Global norm of the last step's gradient before clipping."""
        return float(self._engine.get_global_grad_norm())

    def whole_fragments(self) -> list[Fragment]:
        """All that has to be written when a run is resumed: at stage 0 every parameter, else ``fragments``."""
        return self._handles.whole_fragments()

    def restore(self, adam_step: int) -> None:
        """Make the student follow ``whole_fragments`` after they were written, and count ``adam_step`` updates."""
        for partition in self._handles.partitions:
            self._adam.state[partition]["step"].fill_(adam_step)
        self.adam_step = adam_step
        self._handles.publish()
