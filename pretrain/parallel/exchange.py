"""What neighbouring stages of a pipeline send each other. Shapes are known from the batches: no headers travel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.outputs import TeacherState
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.watch import Watch

Shape = tuple[int, ...]


@dataclass
class Exchange:
    """Sends hidden states to the next stage and gradients to the one before.

    The methods from ``recv_forward`` to ``send_backward_recv_forward`` are those that megatron-core's schedules call on
    a communicator: tensors come and go as lists of one, of None at the pipeline's ends, and shapes are not its own.
    """

    groups: ProcessGroups
    device: torch.device
    dtype: torch.dtype
    """Of hidden states and their gradients."""
    watch: Watch
    before_backward: Callable[[], None]
    """Called when a gradient has come, before the backward pass that it starts."""
    config: Any = None
    """What megatron-core wants to find on a communicator."""

    def __post_init__(self) -> None:
        # NCCL connects a group in its first call, for which all ranks must come together
        with self.watch.phase("connecting the stages"):
            dist.all_reduce(torch.zeros(1, device=self.device), group=self.pp_group)

    @property
    def pp_group(self) -> dist.ProcessGroup:
        """The stages."""
        return self.groups.pp_group

    def start(self, shapes: Sequence[Shape]) -> None:
        """A step begins: shapes of the hidden states of its microbatches."""
        self._shapes = list(shapes)
        self._forwards = self._backwards = 0

    def recv_forward(self, _shapes: Any, is_first: bool) -> list[Tensor | None]:
        """The next microbatch's hidden state."""
        return [None] if is_first else self._swap(receive_hidden=True)

    def recv_backward(self, _shapes: Any, is_last: bool) -> list[Tensor | None]:
        """The next gradient of a hidden state that was sent."""
        return [None] if is_last else self._swap(receive_gradient=True)

    def send_forward(self, hidden: list[Tensor | None], is_last: bool) -> None:
        """Send a hidden state."""
        if not is_last:
            self._swap(hidden=hidden[0])

    def send_backward(self, gradient: list[Tensor | None], is_first: bool) -> None:
        """Send the gradient of a hidden state that was received."""
        if not is_first:
            self._swap(gradient=gradient[0])

    def send_forward_recv_backward(
        self, hidden: list[Tensor | None], _shapes: Any, is_last: bool
    ) -> list[Tensor | None]:
        """Both at once: the next stage does the opposite."""
        return [None] if is_last else self._swap(hidden=hidden[0], receive_gradient=True)

    def send_backward_recv_forward(
        self, gradient: list[Tensor | None], _shapes: Any, is_first: bool
    ) -> list[Tensor | None]:
        """Both at once: the stage before does the opposite."""
        return [None] if is_first else self._swap(gradient=gradient[0], receive_hidden=True)

    def send_teacher(self, state: TeacherState, number: int) -> None:
        """Hand microbatch ``number`` of the teacher to the next stage."""
        with self.watch.phase(f"sending the teacher's microbatch {number} to stage {self.groups.pp_rank + 1}"):
            self._run([self._send(tensor, +1) for tensor in state if tensor is not None])

    def receive_teacher(self, number: int, hidden: Shape, total: Shape | None) -> TeacherState:
        """Take microbatch ``number`` of the teacher from the stage before; ``total`` if it averages blocks already."""
        into = TeacherState(
            torch.empty(hidden, dtype=self.dtype, device=self.device),
            None if total is None else torch.empty(total, dtype=torch.float32, device=self.device),
        )
        with self.watch.phase(f"waiting for the teacher's microbatch {number} of stage {self.groups.pp_rank - 1}"):
            self._run([self._receive(tensor, -1) for tensor in into if tensor is not None])
        return into

    def _swap(
        self,
        hidden: Tensor | None = None,
        gradient: Tensor | None = None,
        *,
        receive_hidden: bool = False,
        receive_gradient: bool = False,
    ) -> list[Tensor | None]:
        """Send and receive at once, so that two neighbours never wait for each other's sends."""
        operations, doings, arriving = [], [], None
        here = self.groups.pp_rank
        if hidden is not None:
            operations.append(self._send(hidden.detach(), +1))
            doings.append(f"sending a hidden state to stage {here + 1}")
        if gradient is not None:
            operations.append(self._send(gradient, -1))
            doings.append(f"sending a gradient to stage {here - 1}")
        if receive_hidden:
            arriving = self._empty(self._forwards)
            operations.append(self._receive(arriving, -1))
            doings.append(f"waiting for hidden state {self._forwards} of stage {here - 1}")
            self._forwards += 1
        if receive_gradient:
            arriving = self._empty(self._backwards)
            operations.append(self._receive(arriving, +1))
            doings.append(f"waiting for gradient {self._backwards} of stage {here + 1}")
            self._backwards += 1
        with self.watch.phase(" and ".join(doings)):
            self._run(operations)
        if receive_hidden and arriving is not None:
            arriving.requires_grad_()
        if receive_gradient:
            self.before_backward()
        return [arriving]

    def _empty(self, number: int) -> Tensor:
        return torch.empty(self._shapes[number], dtype=self.dtype, device=self.device)

    def _send(self, tensor: Tensor, direction: int) -> dist.P2POp:
        return dist.P2POp(dist.isend, tensor.contiguous(), group=self.pp_group, group_peer=self._peer(direction))

    def _receive(self, into: Tensor, direction: int) -> dist.P2POp:
        return dist.P2POp(dist.irecv, into, group=self.pp_group, group_peer=self._peer(direction))

    def _peer(self, direction: int) -> int:
        return self.groups.pp_rank + direction

    def _run(self, operations: list[dist.P2POp]) -> None:
        for work in dist.batch_isend_irecv(operations):
            if self.device.type == "cpu":  # gloo heeds its group's time limit in collectives only
                work.wait(timedelta(seconds=self.watch.timeout_seconds))
            else:
                work.wait()  # with a time limit the host would wait for the device
