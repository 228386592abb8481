"""The configuration of a data2vec 2.0 encoder in transformers' form."""

import math
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from deploy.export.standalone import FILE_NAME, modeling_source


class Data2Vec2Config(PretrainedConfig):
    """What the encoder of one modality is made of."""

    model_type = "data2vec2"

    def __init__(
        self,
        modality: str = "image",
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_prenet_layers: int = 2,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        layer_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        num_extra_tokens: int = 1,
        alibi: dict[str, Any] | None = None,
        image_size: int = 224,
        patch_size: int = 16,
        num_channels: int = 3,
        conv_layers: list[list[int]] | None = None,
        conv_positions: list[int] | None = None,
        vocab_size: int = 50265,
        max_positions: int = 512,
        pad_token_id: int = 1,
        pooling: str = "mean",
        head_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        """Defaults are those of the base models, where they agree; else of the image one.

        Args:
            modality: whose frontend the encoder has: image, audio or text.
            num_hidden_layers: blocks in all, those of the frontend included.
            num_prenet_layers: how many of them belong to the frontend.
            num_extra_tokens: learned tokens before the input's own; the last one is the CLS token.
            alibi: None, or ``distance`` (manhattan or euclidean), ``per_head`` and ``per_layer`` of a distance bias.
            image_size, patch_size, num_channels: of square images.
            conv_layers: channels, kernel and stride of every layer of the feature encoder of waveforms.
            conv_positions: number, kernel and groups of the convolutional positions of waveforms.
            vocab_size: rows of the token embedding of text; letters of a CTC head, blank included.
            max_positions: longest text in tokens.
            pad_token_id: of text; the blank of a CTC head.
            pooling: what a classification head of images reads: ``mean`` of the patches or the ``first`` token.
            head_norm: whether that head begins with a LayerNorm.
        """
        self.modality = modality
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_prenet_layers = num_prenet_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.num_extra_tokens = num_extra_tokens
        self.alibi = alibi
        self.image_size, self.patch_size, self.num_channels = image_size, patch_size, num_channels
        self.conv_layers = conv_layers or [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2]
        self.conv_positions = conv_positions or [5, 19, 16]
        self.vocab_size, self.max_positions = vocab_size, max_positions
        self.pooling, self.head_norm = pooling, head_norm
        super().__init__(**kwargs)
        self.pad_token_id = pad_token_id

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write config.json, and beside it the file that its auto_map names, so that saved models load anywhere."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if getattr(self, "auto_map", None):
            (Path(save_directory) / FILE_NAME).write_text(modeling_source(), encoding="utf-8")

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Waveform samples per frame."""
        return math.prod(stride for _, _, stride in self.conv_layers)
