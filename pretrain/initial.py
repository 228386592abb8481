"""The student's initial weights, drawn layer by layer: at ZeRO stage 3 no rank ever holds them all."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from model.data2vec import Data2Vec
from model.initialization import initialize
from model.linear import cut_of, mark_cut
from pretrain.parallel.fragments import Stretch
from pretrain.parallel.teacher_weights import layers_of
from pretrain.parallel.zero import Partitioning


def without_weights(network: Data2Vec) -> Data2Vec:
    """A network from the meta device whose weights will come from elsewhere, and are empty until then."""
    _to_memory(network.modules(), lambda weight: weight.new_empty(0, device="cpu"))
    return network


def draw(
    student: Data2Vec, seed: int, device: torch.device, dtype: torch.dtype, partitioning: Partitioning
) -> dict[str, Stretch]:
    """Draw the initial weights of a student in host memory, and move it to ``device`` in ``dtype``.

    A layer's weights are those of any layout, and the rank is left with its own of them before the next layer is drawn.

    Args:
        student: from the meta device: parameters have a shape, but no memory.
        seed: of the run.
        device: where it computes.
        dtype: precision of its weights.
        partitioning: what a rank keeps.
    Returns:
        by name the fp32 weights that this rank keeps: those that were drawn themselves if that is all of them, for a
        copy might not fit beside them.
    """
    initial: dict[str, Stretch] = {}
    names = {module: name for name, module in student.named_modules()}
    done: set[nn.Module] = set()
    for layer in [*layers_of(student), student]:  # the last has what belongs to no layer
        modules = set(layer.modules()) - done
        done |= modules
        _to_memory(modules, lambda weight: torch.empty_like(weight, device="cpu"))
        initialize(student, seed, modules)
        drawn = {name: weight for module in modules for name, weight in module.named_parameters(names[module], False)}
        initial |= partitioning.own(drawn)
        layer.to(device, dtype)
        partitioning.partition(layer)
    return initial


def _to_memory(modules: Iterable[nn.Module], make: Callable[[Tensor], Tensor]) -> None:
    """Give modules new parameters, because none can leave the meta device."""
    for module in modules:
        for name, weight in list(module.named_parameters(recurse=False)):
            made = nn.Parameter(make(weight), weight.requires_grad)
            mark_cut(made, cut_of(weight))
            module.register_parameter(name, made)
