"""Where a program makes the host wait for the device, or would if its tensors were on one: recorded by place.

A CPU has no queue of work, so nothing really waits there; but the calls that would are the same.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READING = {"_local_scalar_dense", "equal", "is_nonzero", "allclose"}
"""Operators that give Python a number: ``.item()``, ``float``, ``int``, ``bool``."""
SHAPED_BY_VALUES = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
"""Operators whose result has a shape that only the device knows."""
COPYING = {"tolist", "cpu", "numpy", "__array__"}
"""Methods that bring values to the host without a visible operator."""
PACKAGES = ("model.", "pretrain.", "data_pipelines.", "deepspeed.", "torch.optim.")


class Waits:
    """While active, collects ``places``: module:function of ours, DeepSpeed's or torch's optimizers, innermost."""

    def __init__(self, note: Callable[[], object]) -> None:
        """Args: asked at every wait for what goes with its place."""
        self.places: set[tuple[object, str]] = set()
        self._note = note

    def add(self) -> None:
        """Somebody waits here."""
        frame = sys._getframe(1)
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module.startswith(PACKAGES):
                self.places.add((self._note(), f"{module}:{frame.f_code.co_qualname}"))
                return
            frame = frame.f_back  # type: ignore[assignment]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, waits are collected."""
        accelerator = get_accelerator()
        accelerator.synchronize, before = lambda *_: self.add(), accelerator.synchronize
        try:
            with _Operators(self), _Functions(self), self._told_by_cuda():
                yield
        finally:
            accelerator.synchronize = before

    @contextlib.contextmanager
    def _told_by_cuda(self) -> Iterator[None]:
        """Where there is a GPU torch itself warns of waits."""
        if not torch.cuda.is_available():
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: self.add() if "synchroniz" in str(message) else None
            torch.cuda.set_sync_debug_mode("warn")
            yield
            torch.cuda.set_sync_debug_mode("default")


class _Operators(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if (
            name in READING | SHAPED_BY_VALUES
            or (name == "repeat_interleave" and (kwargs or {}).get("output_size") is None)
            or (name.startswith("index") and _asks_a_mask(args))
            or (name == "_to_copy" and args[0].device.type != "cpu" == torch.device((kwargs or {}).get("device")).type)
        ):
            self._waits.add()
        return function(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if name in COPYING or (function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None):
            self._waits.add()  # a table is copied from pageable memory, for which the host waits, too
        return function(*args, **kwargs)


def _asks_a_mask(args: Any) -> bool:
    """Whether an index is a mask, whose True elements have to be counted unless one number goes to all of them."""
    masks = [t for t in tree_leaves(args[1:2]) if isinstance(t, torch.Tensor) and t.dtype in (torch.bool, torch.uint8)]
    return bool(masks) and not (len(args) > 2 and args[2].numel() == 1)
