"""Watches a model's forward pass and keeps what its parts give, under the names of the goldens."""

from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.data2vec import Data2Vec


class Recorder:
    """Context manager: inside it, every part's output is kept in ``seen``."""

    def __init__(self, model: Data2Vec, prefix: str) -> None:
        self.seen: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._end_of_block = model.config.target.end_of_block
        frontend = model.frontends["image"]
        self._keep(frontend.patch, lambda out: {f"{prefix}.local_encoder": out.flatten(2).transpose(1, 2)})
        self._keep(frontend.norm, lambda out: {f"{prefix}.context_out": out})  # without prenet blocks
        for i, block in enumerate(frontend.blocks):
            self._keep(
                block, lambda out, i=i: self._block(f"{prefix}.prenet{i}", out) | {f"{prefix}.context_out": out[0]}
            )
        for i, block in enumerate(model.encoder.blocks):
            self._keep(block, lambda out, i=i: self._block(f"{prefix}.block{i}", out))
        if hasattr(model, "decoders"):
            decoder = model.decoders["image"]
            self._handles.append(decoder.register_forward_pre_hook(self._decoder_input))
            self._keep(decoder, lambda out: {"decoder.pred": out})
            for i, layer in enumerate(decoder.layers):
                self._keep(layer, lambda out, i=i: {f"decoder.block{i}": out})

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, module: nn.Module, named: Any) -> None:
        self._handles.append(module.register_forward_hook(lambda _, __, out: self.seen.update(named(out))))

    def _decoder_input(self, _: nn.Module, arguments: tuple[Tensor]) -> None:
        self.seen["decoder.input"] = arguments[0]

    def _block(self, name: str, out: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, inner = out
        return {f"{name}.x": x, f"{name}.t": x if self._end_of_block else inner}
