"""Watches a model's forward pass and keeps what its parts give, under the names of the goldens."""

from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.data2vec import Data2Vec
from model.modalities.audio import AudioFrontend, FeatureEncoder
from model.modalities.base import Frontend


class Recorder:
    """Context manager: inside it, every part's output is kept in ``seen``."""

    def __init__(self, model: Data2Vec, prefix: str, modality: str) -> None:
        self.seen: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._end_of_block = model.config.modalities[modality].target.end_of_block
        if modality in model.frontends:  # else a teacher that has the shared blocks only
            self._keep_frontend(model.frontends[modality], prefix)
        for i, block in enumerate(model.encoder.blocks):
            self._keep(block, lambda out, i=i: self._block(f"{prefix}.block{i}", out))
        if hasattr(model, "decoders"):
            decoder = model.decoders[modality]
            self._handles.append(decoder.register_forward_pre_hook(self._decoder_input))
            self._keep(decoder, lambda out: {"decoder.pred": out})
            for i, layer in enumerate(decoder.layers):
                self._keep(layer, lambda out, i=i: {f"decoder.block{i}": out})

    def _keep_frontend(self, frontend: Frontend, prefix: str) -> None:
        if isinstance(frontend.local, FeatureEncoder):
            self._keep(frontend.local.layers[-1], lambda out: {f"{prefix}.local_encoder": out})
        elif frontend.local is not None:
            self._keep(frontend.local, lambda out: {f"{prefix}.local_encoder": out})
        if isinstance(frontend, AudioFrontend):
            self._keep(frontend.positions, lambda out: {f"{prefix}.relpos": out.transpose(1, 2)})
        for i, block in enumerate(frontend.blocks):
            self._keep(block, lambda out, i=i: self._block(f"{prefix}.prenet{i}", out))
        if len(frontend.blocks):
            self._keep(frontend.blocks[-1], lambda out: {f"{prefix}.context_out": out[0]})
        else:
            self._keep(frontend.norm, lambda out: {f"{prefix}.context_out": out})

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, module: nn.Module, named: Any) -> None:
        def keep(_: nn.Module, __: Any, out: Any) -> None:
            self.seen = named(out) | self.seen  # the first call counts: views come before whole samples

        self._handles.append(module.register_forward_hook(keep))

    def _decoder_input(self, _: nn.Module, arguments: tuple[Tensor]) -> None:
        self.seen["decoder.input"] = arguments[0]

    def _block(self, name: str, out: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, inner = out
        return {f"{name}.x": x, f"{name}.t": x if self._end_of_block else inner}
