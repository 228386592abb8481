"""An encoder as a function of named tensors, and that function traced for any batch and length."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from deploy.export.data2vec2.modeling import MODEL_CLASSES, mean_of_tokens
from deploy.export.inputs import Inputs
from deploy.export.trained import Model
from deploy.export.transformers_config import transformers_config
from model.config import AudioConfig, ImageConfig, TextConfig
from model.sections import ModalityConfig

_MIN_FRAMES = 2
"""torch.export draws a line between one and several of anything whose number varies."""


class Inference(nn.Module):
    """The exported model, its weights in the precision that it computes in; what goes in and out is fp32 (and int64).

    Its keywords are those of the exported program: the input by transformers' name, and ``attention_mask``.
    """

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        """Share the weights of ``model`` if ``dtype`` is fp32, else hold rounded ones."""
        super().__init__()
        config = transformers_config(model.encoder.config, dtype, model.head, has_norm="norm.weight" in model.weights)
        kinds = {kind.__name__: kind for kind in MODEL_CLASSES.values()}
        with torch.device("meta"):
            self.network = kinds[config.architectures[0]](config)
        prefix = "data2vec2." if model.head else ""
        state = {prefix + name: tensor for name, tensor in model.encoder.state_dict().items()} | model.weights
        self.network.load_state_dict(state, assign=True)
        for parameter in self.network.parameters():
            parameter.data = parameter.data.to(dtype)
        self.eval().requires_grad_(False)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``logits`` with a head; else ``last_hidden_state``, ``pooler_output`` and, with a mask, ``output_mask``."""
        values = {"pixel_values": pixel_values, "input_values": input_values, "input_ids": input_ids}
        output = self.network(**values, attention_mask=attention_mask)
        if "logits" in output:
            return {"logits": output.logits.float()}
        features = {name: output[name].float() for name in ("last_hidden_state", "pooler_output")}
        mask = {} if output.attention_mask is None else {"output_mask": output.attention_mask}
        return features | mask


def expected(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """What our own model gives, by the names of the outputs of ``Inference``."""
    (side,) = model.encoder.config.modalities.values()
    features, *logits = model.outputs(inputs)
    if logits:
        return {"logits": logits[0]}
    if inputs.padding is None:
        return {"last_hidden_state": features, "pooler_output": mean_of_tokens(features, None, side.num_extra_tokens)}
    mask = nn.functional.pad(~inputs.padding, (side.num_extra_tokens, 0), value=True)
    pooled = mean_of_tokens(features, mask, side.num_extra_tokens)
    return {"last_hidden_state": features, "pooler_output": pooled, "output_mask": mask.long()}


def traced(network: Inference, inputs: Inputs, modality: str, side: ModalityConfig) -> ExportedProgram:
    """The operations of a network, for any batch and, where the modality has lengths, any length.

    What they are recorded on is another batch than ``inputs``: twice as many samples, a tenth shorter.
    """
    given = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.given(modality).items()}
    if not isinstance(side, ImageConfig):
        given = {name: tensor[:, : tensor.shape[1] * 9 // 10].contiguous() for name, tensor in given.items()}
    with torch.no_grad(), quiet():
        return torch.export.export(network, (), kwargs=given, dynamic_shapes=_shapes(given, side), strict=False)


def _shapes(given: dict[str, Tensor], side: ModalityConfig) -> dict[str, dict[int, Dim]]:
    """The dimensions that vary, and how far."""
    sizes = {0: Dim("batch")}
    if isinstance(side, AudioConfig):
        fewest = _MIN_FRAMES
        for _, kernel, stride in reversed(side.conv_layers):
            fewest = (fewest - 1) * stride + kernel
        sizes[1] = Dim("samples", min=fewest)
    elif isinstance(side, TextConfig):
        sizes[1] = Dim("tokens", max=side.max_positions)
    return dict.fromkeys(given, sizes)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters say about themselves, and about libraries that we lack, from users."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
