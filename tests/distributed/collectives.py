"""What this process says to others: every call that reaches torch's process groups, whoever makes it."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = {
    "allreduce_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "receive",
}
DTYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int64: "int64",
    torch.uint8: "uint8",
}


class Collectives(TorchDispatchMode):
    """While active, counts calls and bytes by (kind, group, dtype, phase).

    DeepSpeed, megatron and torch's own wrappers all end in the operators that are seen here. Bytes are those of the
    largest argument: what is summed or sent, or the whole of what is gathered or scattered.
    """

    def __init__(self, groups: dict[str, dist.ProcessGroup]) -> None:
        super().__init__()
        self.calls: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        self._names = {group.group_name: name for name, group in groups.items()}
        self._names_of_ranks = {
            tuple(dist.get_process_group_ranks(group)): name for name, group in reversed(groups.items())
        }
        self._phase = "forward"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is called inside belongs to a phase, unless autograd calls it."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, in a phase."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **options)

        return call

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self._note(function.__name__.split(".")[0], args)
        return function(*args, **(kwargs or {}))

    def _note(self, operator: str, args: Any) -> None:
        if operator in ("barrier", "monitored_barrier_"):
            return
        group = next(
            dist.ProcessGroup.unbox(one) for one in args if isinstance(one, torch.ScriptObject) and _is_group(one)
        )
        sizes = defaultdict(int)
        for position, argument in enumerate(args):
            for tensor in tree_leaves(argument):
                if isinstance(tensor, torch.Tensor):
                    sizes[position] += tensor.numel() * tensor.element_size()
                    dtype = tensor.dtype
        within_backward = torch._C._current_graph_task_id() != -1
        phase = "backward" if within_backward and self._phase == "forward" else self._phase
        ranks = tuple(dist.get_process_group_ranks(group))
        name = self._names.get(group.group_name) or self._names_of_ranks[ranks]  # DeepSpeed makes groups of its own
        entry = self.calls[KINDS.get(operator, operator), name, DTYPES.get(dtype, str(dtype)), phase]
        entry[0] += 1
        entry[1] += max(sizes.values())


def _is_group(one: torch.ScriptObject) -> bool:
    return "ProcessGroup" in str(one._type())
