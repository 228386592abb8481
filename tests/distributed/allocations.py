"""How many bytes of tensors are alive at once, beyond those that were there before: storages, each counted once."""

import time
from typing import Any, Self

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PATIENCE = 0.05
"""Seconds."""


class Allocations(TorchDispatchMode):
    """While active, watches the storages that operators return; ``peak`` is the largest sum of those still alive.

    Within ``PATIENCE`` after a collective was waited for, a sum that would be the largest counts only if it lasts: a
    thread of gloo lets go of what a collective moved a little after its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._before: dict[int, torch.UntypedStorage] = {}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._patient_until = 0.0
        self._wait = dist.Work.wait

    def __enter__(self) -> Self:
        def wait(work: dist.Work, *args: Any) -> Any:
            result = self._wait(work, *args)
            self._patient_until = time.monotonic() + PATIENCE
            return result

        dist.Work.wait = wait  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        dist.Work.wait = self._wait  # type: ignore[method-assign]

    def ignore(self, tensors: list[torch.Tensor]) -> None:
        """These were there before. They are held, lest new ones get their addresses."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._before[storage._cdata] = storage

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._before:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        while (alive := self.alive()) > self.peak and time.monotonic() < self._patient_until:
            time.sleep(0.001)
        self.peak = max(self.peak, alive)
        return result

    def alive(self) -> int:
        """The sum now."""
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        return sum(size for _, size in self._alive.values())
