"""Our configuration in transformers' words."""

from typing import Any

import torch

from deploy.export.data2vec2.configuration import Data2Vec2Config
from deploy.export.data2vec2.modeling import MODEL_CLASSES
from deploy.export.heads import Head
from deploy.export.standalone import FILE_NAME
from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.sections import ModalityConfig

_AUTO_CLASSES = {
    "image-classification": "AutoModelForImageClassification",
    "sequence-classification": "AutoModelForSequenceClassification",
    "ctc": "AutoModelForCTC",
}
_MODULE = FILE_NAME.removesuffix(".py")


def transformers_config(
    model: ModelConfig, dtype: torch.dtype, head: Head | None = None, *, has_norm: bool = True
) -> Data2Vec2Config:
    """What config.json holds.

    Args:
        model: of one modality.
        dtype: of the stored weights.
        head: what stands on the encoder, if anything.
        has_norm: whether that begins with a LayerNorm.
    """
    ((modality, side),) = model.modalities.items()
    encoder = model.encoder
    auto_class = _AUTO_CLASSES[head.kind] if head else "AutoModel"
    return Data2Vec2Config(
        modality=modality,
        hidden_size=encoder.dim,
        num_hidden_layers=side.prenet_depth + encoder.depth,
        num_prenet_layers=side.prenet_depth,
        num_attention_heads=encoder.num_heads,
        intermediate_size=int(encoder.dim * encoder.mlp_ratio),
        layer_norm_eps=encoder.norm_eps,
        initializer_range=encoder.init_std,
        num_extra_tokens=side.num_extra_tokens,
        alibi=_alibi(side),
        architectures=[MODEL_CLASSES[auto_class].__name__],
        auto_map={"AutoConfig": f"{_MODULE}.Data2Vec2Config"}
        | {auto: f"{_MODULE}.{kind.__name__}" for auto, kind in MODEL_CLASSES.items()},
        dtype=dtype,
        **_frontend(side) | _head(head, has_norm),
    )


def _alibi(side: ModalityConfig) -> dict[str, Any] | None:
    if side.alibi is None:
        return None
    return {name: getattr(side.alibi, name) for name in ("distance", "per_head", "per_layer")}


def _frontend(side: ModalityConfig) -> dict[str, Any]:
    if isinstance(side, ImageConfig):
        return {"image_size": side.image_size, "patch_size": side.patch_size, "num_channels": side.in_channels}
    if isinstance(side, AudioConfig):
        return {
            "conv_layers": [list(layer) for layer in side.conv_layers],
            "conv_positions": [side.positions_depth, side.positions_kernel, side.positions_groups],
        }
    assert isinstance(side, TextConfig)
    return {"vocab_size": side.vocab_size, "max_positions": side.max_positions}


def _head(head: Head | None, has_norm: bool) -> dict[str, Any]:
    if head is None:
        return {}
    if head.kind == "ctc":
        return {"vocab_size": head.num_outputs, "pad_token_id": 0}
    labels = dict(enumerate(head.labels or (f"LABEL_{number}" for number in range(head.num_outputs))))
    kind = {"problem_type": "regression"} if head.num_outputs == 1 else {}
    return kind | {
        "id2label": labels,
        "label2id": {label: number for number, label in labels.items()},
        "pooling": head.pooling,
        "head_norm": has_norm,
    }
