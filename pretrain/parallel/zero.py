"""DeepSpeed: the only module that imports it, or knows where its optimizers keep their tensors (0.19.8)."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.linear import cut_of
from pretrain.environment import Processes
from pretrain.parallel.fragments import FlatGroup, Fragment, Placement, pack
from pretrain.parallel.groups import ProcessGroups


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed announces itself on stdout and through its logger; only warnings of ours shall be seen."""
    # it calls this at every step, and torch warns of each call
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
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
    os.environ.update(
        RANK=str(processes.rank),
        WORLD_SIZE=str(processes.world_size),
        LOCAL_RANK=str(processes.local_rank),
        LOCAL_SIZE=str(processes.local_size),
        MASTER_ADDR=processes.master_addr,
        MASTER_PORT=str(processes.master_port),
    )
    with _quiet():
        import deepspeed

        _without_shared_memory_operator()
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def leave_processes() -> None:
    """End the collectives' threads once all ranks are done; else the interpreter's exit may abort over them."""
    torch.distributed.destroy_process_group()


class _ModelParallelUnit:
    """The groups as DeepSpeed asks for them."""

    def __init__(self, groups: ProcessGroups) -> None:
        answers = {
            "data_parallel": (groups.dp_group, groups.dp_rank, groups.dp_size),
            "tensor_model_parallel": (groups.tp_group, groups.tp_rank, groups.tp_size),
            "model_parallel": (groups.tp_group, groups.tp_rank, groups.tp_size),
        }
        for kind, (group, rank, size) in answers.items():
            setattr(self, f"get_{kind}_group", partial(_identity, group))
            setattr(self, f"get_{kind}_rank", partial(_identity, rank))
            setattr(self, f"get_{kind}_world_size", partial(_identity, size))


def _identity(answer: Any) -> Any:
    return answer


class StudentEngine:
    """The student under DeepSpeed: forward, backward, step, and this rank's fp32 fragments.

    Attributes:
        groups: layout of every optimizer group's flat vector.
        fragments: what this rank owns, as live views; written in place when a run is resumed.
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
            student: on its device, in the precision of its weights.
            optimizer: over the student's parameters; DeepSpeed points it at its own fp32 partitions.
            config: from ``deepspeed_config``.
            groups: the data-parallel ranks.
            autocast: precision of the arithmetic where the weights stay fp32 (bf16 at stage 0), or None.
        """
        for weight in student.parameters():  # DeepSpeed's norm counts whole parameters once, of cut ones all parts
            weight.tensor_model_parallel = cut_of(weight) is not None  # type: ignore[attr-defined]
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in student.named_parameters()}
        self._autocast = autocast
        self._device = next(student.parameters()).device
        with _quiet():
            import deepspeed

            self._engine, *_ = deepspeed.initialize(
                model=student,
                optimizer=optimizer,
                config=config,
                dist_init_required=False,
                mpu=_ModelParallelUnit(groups) if groups.tp_size > 1 else None,
            )
        self._stage = int(config["zero_optimization"]["stage"])
        self._adam = optimizer
        for parameter in self._adam_parameters():
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.groups, self.fragments = self._replicated(groups) if self._stage == 0 else self._partitioned(groups)
        self._assert_layout()

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
        self._engine.backward(loss * self._engine.dp_world_size)

    def step(self, *, lr: float, eps: float) -> bool:
        """Reduce and clip the gradients and update the weights.

        Returns:
            False if the gradient norm was not finite on any rank: then nothing has changed.
        """
        for group in self._adam.param_groups:
            group["lr"], group["eps"] = lr, eps
        self._engine.step()
        return bool(self._engine.was_step_applied())

    def gradient_norm(self) -> float:
        """Global norm of the last step's gradient before clipping."""
        return float(self._engine.get_global_grad_norm())

    @property
    def adam_step(self) -> int:
        """Updates that the optimizer has made."""
        return int(self._adam.state[self._adam_parameters()[0]]["step"].item())

    def restore(self, adam_step: int) -> None:
        """Make the student follow ``fragments`` after they were written, and count ``adam_step`` updates."""
        for parameter in self._adam_parameters():
            self._adam.state[parameter]["step"].fill_(adam_step)
        if self._stage > 0:
            self._engine.optimizer.update_lp_params()

    def _adam_parameters(self) -> list[Tensor]:
        return [parameter for group in self._adam.param_groups for parameter in group["params"]]

    def _replicated(self, groups: ProcessGroups) -> tuple[list[FlatGroup], list[Fragment]]:
        """Stage 0: every rank steps whole fp32 parameters; ownership is cut as stage 1 would cut it.

        The fragments cover only this rank's share: enough for the teacher's shards and for writing a
        checkpoint once. ``whole_fragments`` serves reading one.
        """
        flat, fragments = [], []
        for number, group in enumerate(self._adam.param_groups):
            parameters = {self._names[p]: p for p in group["params"]}
            packed = pack([(name, tuple(p.shape), cut_of(p)) for name, p in parameters.items()], groups.dp_size)
            flat.append(packed)
            for place, start, stop, shard_offset in packed.owned(groups.dp_rank):
                parameter = parameters[place.name]
                views = [t.view(-1)[start:stop] for t in self._state(parameter)]
                fragments.append(Fragment(place, start, number, shard_offset, *views))
        return flat, fragments

    def whole_fragments(self) -> list[Fragment]:
        """All that has to be written when a run is resumed: at stage 0 every parameter, else ``fragments``."""
        if self._stage > 0:
            return self.fragments
        weights = {name: parameter for parameter, name in self._names.items()}
        return [
            Fragment(place, 0, number, -1, *(t.view(-1) for t in self._state(weights[place.name])))
            for number, group in enumerate(self.groups)
            for place in group.placements
        ]

    def _partitioned(self, groups: ProcessGroups) -> tuple[list[FlatGroup], list[Fragment]]:
        """Stages 1 and 2: this rank's fp32 partition of every group is one flat tensor."""
        flat, fragments = [], []
        weights, members, partitions = self._handles()
        for number, (whole, parameters, partition) in enumerate(zip(weights, members, partitions, strict=True)):
            placements = tuple(
                Placement(
                    self._names[p],
                    tuple(p.shape),
                    int(p.data.storage_offset() - whole.storage_offset()),
                    cut_of(p),
                )
                for p in parameters
            )
            layout = FlatGroup(placements, partition.numel())
            flat.append(layout)
            for place, start, stop, shard_offset in layout.owned(groups.dp_rank):
                end = shard_offset + stop - start
                views = [t[shard_offset:end] for t in self._state(partition)]
                fragments.append(Fragment(place, start, number, shard_offset, *views))
        return flat, fragments

    def _handles(self) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor]]:
        """Per group: flat weights of all ranks, the parameters in them, this rank's fp32 partition."""
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "fp32_groups_flat_partition"):  # BF16_Optimizer: bf16 at stage 1
            return optimizer.bf16_groups_flat, optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
        return (
            optimizer.bit16_groups_flat,
            optimizer.round_robin_bit16_groups,
            optimizer.single_partition_of_fp32_groups,
        )

    def _state(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = self._adam.state[parameter]
        return parameter.detach(), state["exp_avg"], state["exp_avg_sq"]

    def _assert_layout(self) -> None:
        """DeepSpeed's handles are internal: compare every fragment with the weights that it should hold."""
        weights = {name: parameter for parameter, name in self._names.items()}
        for fragment in self.fragments:
            expected = weights[fragment.name].detach().reshape(-1)[fragment.start : fragment.stop]
            if not torch.equal(fragment.master.to(expected.dtype), expected):
                raise RuntimeError(f"DeepSpeed's layout is not the expected one: {fragment.name} differs")
