"""The weights that the teacher computes with: whole on every rank, or there only while they are needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.encoder import Block
from model.modalities.base import Frontend
from pretrain.parallel.fragments import Placement
from pretrain.parallel.teacher_gather import Arrival, Gather


class TeacherWeights(Protocol):
    """Brings the average into the network that computes targets."""

    def refresh(self) -> None:
        """The shards have changed; starts what can be started."""
        ...

    def ready(self) -> None:
        """Wait for what ``refresh`` started. No collective of the teacher is in flight between passes after this."""
        ...


class ResidentWeights:
    """A whole copy on every rank, refreshed by one all-gather after every update.

    At ZeRO 3 the all-gather needs another copy until ``ready`` has joined the parts.
    """

    def __init__(self, module: nn.Module, places: tuple[Placement, ...], gather: Gather) -> None:
        """Args: the network, without weights, on its device; its parameters; how to gather them."""
        self._gather = gather
        self._parameters = dict(module.named_parameters())
        self._places = places
        some = next(iter(self._parameters.values()))
        self._whole = torch.zeros(gather.whole_numel, dtype=some.dtype, device=some.device)
        self._arrival: Arrival | None = None

    def refresh(self) -> None:
        """Start the all-gather."""
        self._arrival = self._gather.all(self._whole)

    def ready(self) -> None:
        """Wait for it."""
        if self._arrival is not None:
            _install(self._parameters, self._places, self._arrival.wait())
            self._arrival = None


@dataclass(eq=False)
class _Layer:
    """A module and all its parameters, which come and go together."""

    module: nn.Module
    places: list[Placement]
    parameters: dict[str, nn.Parameter]


class GatheredWeights:
    """Nothing but the shards, the layer that is being computed and the one after it.

    A layer is a block, or what a frontend has beside its blocks (its local encoder, positions, norm). Before it runs
    its weights are waited for and those of the layer that followed it last time are sent for; after it they are freed.
    What belongs to no layer (extra tokens, ALiBi's scales: some thousand numbers) stays. Every pass gathers anew:
    with several microbatches per step the weights travel several times. All ranks must run the same layers.
    """

    def __init__(self, module: nn.Module, places: tuple[Placement, ...], gather: Gather) -> None:
        """Args: the network, without weights, on its device; its parameters; how to gather them."""
        self._gather = gather
        names = {parameter: name for name, parameter in module.named_parameters()}
        by_name = {place.name: place for place in places}
        self._layers: dict[nn.Module, _Layer] = {}
        for part in layers_of(module):
            parameters = {names[p]: p for p in part.parameters()}
            self._layers[part] = _Layer(part, [by_name[name] for name in parameters], parameters)
            part.register_forward_pre_hook(self._enter)
            part.register_forward_hook(self._leave)
        in_layers = {name for layer in self._layers.values() for name in layer.parameters}
        self._kept_places = [place for place in places if place.name not in in_layers]
        self._kept = {name: p for p, name in names.items() if name not in in_layers}
        self._kept_arrival: Arrival | None = None
        self._after: dict[_Layer, _Layer] = {}
        self._last: _Layer | None = None
        self._coming: tuple[_Layer, Arrival] | None = None

    def refresh(self) -> None:
        """Send for the few weights that stay."""
        if self._kept:
            self._kept_arrival = self._gather.some(self._kept_places)

    def ready(self) -> None:
        """Wait for them; a new pass begins."""
        if self._kept_arrival is not None:
            _install(self._kept, self._kept_places, self._kept_arrival.wait())
            self._kept_arrival = None
        self._drop()
        self._last = None

    @torch.no_grad()
    def _enter(self, module: nn.Module, _: Any) -> None:
        layer = self._layers[module]
        if self._coming is None or self._coming[0] is not layer:
            self._drop()
            self._coming = layer, self._gather.some(layer.places)
        _install(layer.parameters, layer.places, self._coming[1].wait())
        self._coming = None
        if self._last is not None:
            self._after[self._last] = layer
        self._last = layer
        following = self._after.get(layer)
        if following is not None:
            self._coming = following, self._gather.some(following.places)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        _free(self._layers[module].parameters)

    def _drop(self) -> None:
        """Let go of a layer that was sent for and is not needed: another modality's follows."""
        if self._coming is not None:
            self._coming[1].wait()
            self._coming = None


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """Blocks, and modules with parameters that hold no block and are not a whole frontend; each is run by a call."""
    for child in module.children():
        holds_layers = isinstance(child, Frontend | nn.ModuleList | nn.ModuleDict) or any(
            isinstance(part, Block) for part in child.modules()
        )
        if holds_layers and not isinstance(child, Block):
            yield from layers_of(child)
        elif any(True for _ in child.parameters()):
            yield child


def _install(parameters: dict[str, nn.Parameter], places: list[Placement] | tuple, values: list[Tensor]) -> None:
    for place, value in zip(places, values, strict=True):
        parameters[place.name].data = value.view(place.shape)


def _free(parameters: dict[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.data = parameter.data.new_empty(0)
