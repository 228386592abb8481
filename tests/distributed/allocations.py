"""How many bytes of tensors are alive at once, beyond those that were there before: storages, each counted once."""

import time
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """While active, watches the storages that operators return; ``peak`` is the largest sum of those still alive.

    A sum that would be the largest counts if it lasts for 50 ms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._before: dict[int, torch.UntypedStorage] = {}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def ignore(self, tensors: list[torch.Tensor]) -> None:
        """These were there before. They are held, lest new ones get their addresses."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._before[storage._cdata] = storage

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._before:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        patience = 50
        while (alive := self._bytes()) > self.peak and patience:
            time.sleep(0.001)  # a thread of gloo lets go of what a finished collective moved a little after its end
            patience -= 1
        self.peak = max(self.peak, alive)
        return result

    def _bytes(self) -> int:
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        return sum(size for _, size in self._alive.values())
