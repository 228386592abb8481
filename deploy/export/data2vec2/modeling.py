"""data2vec 2.0 encoders for transformers: the bare encoder, and with a head that was fine-tuned."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, ImageClassifierOutput, ModelOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from deploy.export.data2vec2.configuration import Data2Vec2Config
from deploy.export.data2vec2.frontends import FRONTENDS, Block, Frontend, ImageFrontend, sincos_positions

INPUTS = {"image": "pixel_values", "audio": "input_values", "text": "input_ids"}
EMBEDDINGS = {"image": "local", "audio": "local", "text": "local.tokens"}
"""Module of a frontend that helpers of transformers look for, to resize it or to hook its output."""
HEAD_NORM_EPS = 1e-6


@dataclass
class Data2Vec2Output(ModelOutput):
    """What ``Data2Vec2Model`` gives; extra tokens come first everywhere."""

    last_hidden_state: Tensor
    """(B, extra + T, D)."""
    pooler_output: Tensor | None = None
    """(B, D), mean over the tokens that are neither extra nor padding."""
    hidden_states: tuple[Tensor, ...] | None = None
    """If asked for: the input of the first block and the output of every block."""
    attention_mask: Tensor | None = None
    """(B, extra + T), 1 for real tokens; None if no attention_mask was given."""


class Encoder(nn.Module):
    """The blocks that all modalities share."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        num_shared = config.num_hidden_layers - config.num_prenet_layers
        self.blocks = nn.ModuleList(Block(config) for _ in range(num_shared))


class Data2Vec2PreTrainedModel(PreTrainedModel):
    """What all heads have in common: configuration, initialisation."""

    config_class = Data2Vec2Config
    base_model_prefix = "data2vec2"
    main_input_name = "pixel_values"
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # else Trainer leaves it to the loss to divide by the steps that it accumulates

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config)
        self.main_input_name = INPUTS[config.modality]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                nn.init.zeros_(bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Frontend):
            if isinstance(module, ImageFrontend):
                module.positions.copy_(sincos_positions(module.grid_size, self.config.hidden_size))
            if self.config.num_extra_tokens:
                nn.init.normal_(module.extra_tokens)
            if self.config.alibi:
                nn.init.ones_(module.alibi_scale)


class Data2Vec2Model(Data2Vec2PreTrainedModel):
    """The bare encoder: last hidden state with the extra tokens first, no masking, no decoder."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config)
        self.frontends = nn.ModuleDict({config.modality: FRONTENDS[config.modality](config)})
        self.encoder = Encoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """What makes tokens of the raw input; of text the table (V, D)."""
        return self.get_submodule(f"frontends.{self.config.modality}.{EMBEDDINGS[self.config.modality]}")

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another module in that place."""
        self.set_submodule(f"frontends.{self.config.modality}.{EMBEDDINGS[self.config.modality]}", value)

    @can_return_tuple
    def forward(
        self,
        source: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> Data2Vec2Output:
        """Encode a batch; ``return_dict=False`` gives a plain tuple, other arguments (token_type_ids) are not read.

        Args:
            source: the input of the model's modality by position; by name it is one of the three.
            attention_mask: (B, L) or (B, T), 1 for real samples or tokens; None if all are real.
            pixel_values: images (B, C, S, S), normalised as preprocessor_config.json says.
            input_values: waveforms (B, L), each of mean 0 and variance 1, padded with 0.
            input_ids: token numbers (B, T).
            output_hidden_states: also return the input of the first block and the output of every block.
            output_attentions: cannot be had.
        Raises:
            ValueError: for the input of another modality, two inputs, or an output that cannot be had.
        """
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError("output_attentions: fused attention keeps no weights, so there are none to return")
        given = {"pixel_values": pixel_values, "input_values": input_values, "input_ids": input_ids}
        named = given.pop(self.main_input_name)
        if (source is None) == (named is None) or any(other is not None for other in given.values()):
            raise ValueError(f"this is an encoder of {self.config.modality}: give it {self.main_input_name} alone")
        frontend = self.frontends[self.config.modality]
        assert isinstance(frontend, Frontend)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        x, mask = frontend(named if source is None else source, attention_mask)
        states = [x]
        for block, bias in zip([*frontend.blocks, *self.encoder.blocks], frontend.biases(x, mask), strict=True):
            x = block(x, bias)
            if output_hidden_states:
                states.append(x)
        return Data2Vec2Output(
            last_hidden_state=x,
            pooler_output=mean_of_tokens(x, mask, self.config.num_extra_tokens),
            hidden_states=tuple(states) if output_hidden_states else None,
            attention_mask=None if mask is None else mask.long(),
        )


def mean_of_tokens(x: Tensor, mask: Tensor | None, num_extra_tokens: int) -> Tensor:
    """Mean (B, D) of tokens (B, extra + T, D) that are neither extra nor padding."""
    if mask is None:
        return x[:, num_extra_tokens:].mean(dim=1)
    kept = mask[:, num_extra_tokens:].unsqueeze(-1).to(x.dtype)
    return (x[:, num_extra_tokens:] * kept).sum(dim=1) / kept.sum(dim=1)


class Data2Vec2WithHead(Data2Vec2PreTrainedModel):
    """An encoder under a head; tensors of the encoder are named data2vec2.*."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config)
        self.data2vec2 = Data2Vec2Model(config)
        self.make_head(config)
        self.post_init()

    def make_head(self, config: Data2Vec2Config) -> None:
        """Make the modules of the head."""
        raise NotImplementedError

    def logits(self, output: Data2Vec2Output) -> Tensor:
        """What the head makes of the encoder's output."""
        raise NotImplementedError

    def encode(self, **inputs: Any) -> Data2Vec2Output:
        """The encoder's output as an object."""
        return self.data2vec2(**inputs | {"return_dict": True})

    def classified(self, labels: Tensor | None, kind: type[ModelOutput], **inputs: Any) -> ModelOutput:
        """Run a classifier; its loss is transformers' own for the ``problem_type``, computed in fp32."""
        output = self.encode(**inputs)
        logits, loss = self.logits(output), None
        if labels is not None:
            labels = labels if self.config.num_labels > 1 else labels.float()
            loss = self.loss_function(labels, logits.float(), self.config)
        return kind(loss=loss, logits=logits, hidden_states=output.hidden_states)


class PooledHead(Data2Vec2WithHead):
    """Mean over the tokens (or the first token), LayerNorm, linear."""

    def make_head(self, config: Data2Vec2Config) -> None:
        """See ``Data2Vec2WithHead``."""
        self.norm = nn.LayerNorm(config.hidden_size, HEAD_NORM_EPS) if config.head_norm else nn.Identity()
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def logits(self, output: Data2Vec2Output) -> Tensor:
        """(B, classes)."""
        first = self.config.pooling == "first"
        return self.classifier(self.norm(output.last_hidden_state[:, 0] if first else output.pooler_output))


class Data2Vec2ForImageClassification(PooledHead):
    """Over patches: as fairseq fine-tunes on ImageNet."""

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Logits (B, classes), and with ``labels``, (B,) or (B, classes), the loss; others as of the encoder."""
        return self.classified(labels, ImageClassifierOutput, pixel_values=pixel_values, **kwargs)


class Data2Vec2ForAudioClassification(PooledHead):
    """The same head over the frames of waveforms."""

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits (B, classes), and with ``labels``, (B,) or (B, classes), the loss; others as of the encoder."""
        inputs = {"input_values": input_values, "attention_mask": attention_mask}
        return self.classified(labels, SequenceClassifierOutput, **inputs, **kwargs)


class Data2Vec2ForSequenceClassification(Data2Vec2WithHead):
    """First token, linear, tanh, linear: as fairseq fine-tunes on GLUE."""

    def make_head(self, config: Data2Vec2Config) -> None:
        """See ``Data2Vec2WithHead``."""
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def logits(self, output: Data2Vec2Output) -> Tensor:
        """(B, classes)."""
        first = output.last_hidden_state[:, self.config.num_extra_tokens]
        return self.classifier(torch.tanh(self.dense(first)))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits (B, classes), and with ``labels``, (B,) or (B, classes), the loss; others as of the encoder."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.classified(labels, SequenceClassifierOutput, **inputs, **kwargs)


class Data2Vec2ForCTC(Data2Vec2WithHead):
    """A linear from every frame to letters; number ``pad_token_id`` is the blank."""

    def make_head(self, config: Data2Vec2Config) -> None:
        """See ``Data2Vec2WithHead``."""
        self.classifier = nn.Linear(config.hidden_size, config.vocab_size)

    def logits(self, output: Data2Vec2Output) -> Tensor:
        """(B, T, letters); padded frames give blanks, as in fairseq."""
        num_extra, mask = self.config.num_extra_tokens, output.attention_mask
        logits = self.classifier(output.last_hidden_state[:, num_extra:])
        if mask is None:
            return logits
        blank = torch.full((logits.shape[-1],), torch.finfo(logits.dtype).min, device=logits.device)
        blank[self.config.pad_token_id] = 0
        return torch.where(mask[:, num_extra:, None].bool(), logits, blank.to(logits.dtype))

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits (B, T, letters), and with ``labels`` (B, S), padded with -100, the CTC loss per letter."""
        output = self.encode(input_values=input_values, attention_mask=attention_mask, **kwargs)
        logits, loss, num_extra = self.logits(output), None, self.config.num_extra_tokens
        if labels is not None:
            mask = output.attention_mask
            whole = torch.full((logits.shape[0],), logits.shape[1], device=logits.device)
            lengths = whole if mask is None else mask[:, num_extra:].sum(dim=1)
            loss = functional.ctc_loss(
                logits.float().log_softmax(dim=-1).transpose(0, 1),
                labels.masked_select(labels >= 0),
                lengths,
                (labels >= 0).sum(dim=1),
                blank=self.config.pad_token_id,
                zero_infinity=True,
            )
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


MODEL_CLASSES = {
    "AutoModel": Data2Vec2Model,
    "AutoModelForImageClassification": Data2Vec2ForImageClassification,
    "AutoModelForAudioClassification": Data2Vec2ForAudioClassification,
    "AutoModelForSequenceClassification": Data2Vec2ForSequenceClassification,
    "AutoModelForCTC": Data2Vec2ForCTC,
}
"""transformers' Auto class -> ours."""
