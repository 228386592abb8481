"""Configurations of fairseq's data2vec 2.0 models -> ours; what our model does not have is refused by name."""

import re
from typing import Any

from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.errors import ConfigError
from model.sections import (
    AlibiConfig,
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    MaskConfig,
    TargetConfig,
    TeacherScope,
)

_MODEL_ONLY: dict[str, Any] = {
    "layer_norm_first": False,
    "norm_affine": True,
    "shared_decoder": None,
}
_MODALITY_ONLY: dict[str, Any] = {"learned_alibi": False}
_IMAGE_ONLY: dict[str, Any] = {"fixed_positions": True, "transformer_decoder": False, "enc_dec_transformer": False}
_AUDIO_ONLY: dict[str, Any] = {"extractor_mode": "layer_norm", "conv_pos_pre_ln": False}
_TEXT_ONLY: dict[str, Any] = {
    "learned_pos": True,
    "no_scale_embedding": True,
    "layernorm_embedding": True,
    "no_token_positional_embeddings": False,
}
"""Options with the only value that our model knows."""
_TRAINING_ONLY: dict[str, Any] = {
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "mask_prob_min": None,
    "keep_masked_pct": 0.0,
    "remove_masks": False,
    "mask_dropout": 0.0,
    "mask_channel_prob": 0.0,
    "encoder_zero_mask": True,
    "local_grad_mult": 1.0,
}
"""Options of the model and of a modality that features do not depend on, with what our training does."""


def model_config_from_fairseq(model: dict[str, Any], *, cls_rows: int, vocab_size: int | None = None) -> ModelConfig:
    """The configuration of a model of one modality.

    Args:
        model: the resolved ``model`` section of a fairseq configuration (of a checkpoint's ``cfg``).
        cls_rows: rows that the CLS term is summed over: batch per GPU times ``clone_batch``.
        vocab_size: rows of the embedding table of a text model, which the configuration does not tell.
    Raises:
        ConfigError: for an option that our model does not have, naming it and its value; those of ``training_only``
            are left out.
    """
    _refuse(model, _MODEL_ONLY, "model.")
    modality = _modality(model)
    side = model["modalities"][modality]
    path = f"model.modalities.{modality}."
    if side["decoder"] is None:
        raise ConfigError(f"{path}decoder: None is not supported (a pretraining model has one)")
    _refuse(side, _MODALITY_ONLY, path)
    common = _common(model, side, path, cls_rows)
    encoder = EncoderConfig(
        depth=model["depth"],
        dim=model["embed_dim"],
        num_heads=model["num_heads"],
        mlp_ratio=model["mlp_ratio"],
        norm_eps=model["norm_eps"],
        dropout=model["encoder_dropout"],
        attention_dropout=model["attention_dropout"],
        activation_dropout=model["activation_dropout"],
        post_mlp_dropout=model["post_mlp_drop"],
        input_dropout=model["dropout_input"],
        layer_dropout=model["layerdrop"],
    )
    if modality == "text":
        return ModelConfig(encoder=encoder, text=_text(side, common, path, vocab_size))
    if modality == "audio":
        return ModelConfig(encoder=encoder, audio=_audio(side, common, path))
    return ModelConfig(encoder=encoder, image=_image(side, common, path, model["embed_dim"]))


def training_only(model: dict[str, Any]) -> list[str]:
    """Options, with their values, that ``model_config_from_fairseq`` leaves out: a training of ours does otherwise."""
    modality = _modality(model)
    sections = {"model.": model, f"model.modalities.{modality}.": model["modalities"][modality]}
    return [
        f"{path}{option} {section[option]!r}"
        for path, section in sections.items()
        for option, value in _TRAINING_ONLY.items()
        if section.get(option, value) != value
    ]


def _modality(model: dict[str, Any]) -> str:
    """The one modality that the model has."""
    sections = model["modalities"]
    named = str(model.get("supported_modality") or "").rpartition(".")[2].lower()
    present = [name for name in ("image", "audio", "text") if sections.get(name) is not None]
    if named in present:
        return named
    if len(present) == 1:
        return present[0]
    raise ConfigError(f"model.supported_modality: {named!r} does not say which of {', '.join(present)} the model has")


def _common(model: dict[str, Any], side: dict[str, Any], path: str, cls_rows: int) -> dict[str, Any]:
    """What our modality sections share."""
    return {
        "num_views": model["clone_batch"],
        "prenet_depth": side["prenet_depth"],
        "prenet_dropout": side["prenet_dropout"],
        "prenet_layer_dropout": side["prenet_layerdrop"],
        "num_extra_tokens": side["num_extra_tokens"],
        "extra_tokens_zero_init": side["init_extra_token_zero"],
        "alibi": _alibi(side, model["num_heads"], path),
        "teacher_scope": _teacher_scope(model, side),
        "decoder": _decoder(side, path),
        "target": TargetConfig(
            top_k=model["average_top_k_layers"],
            end_of_block=model["end_of_block_targets"],
            batch_norm_layer=model["batch_norm_target_layer"],
            instance_norm_layer=model["instance_norm_target_layer"],
            layer_norm_layer=model["layer_norm_target_layer"],
            layer_norm=model["layer_norm_targets"],
            instance_norm=model["instance_norm_targets"],
        ),
        "loss": LossConfig(
            beta=model["loss_beta"],
            scale=model["loss_scale"],
            regression_weight=model["d2v_loss"],
            cls_weight=model["cls_loss"],
            cls_rows=cls_rows,
            reconstruction_weight=model["recon_loss"],
        ),
    }


def _image(side: dict[str, Any], common: dict[str, Any], path: str, dim: int) -> ImageConfig:
    _refuse(side, _IMAGE_ONLY | {"embed_dim": dim}, path)
    return ImageConfig(
        image_size=side["input_size"],
        patch_size=side["patch_size"],
        in_channels=side["in_chans"],
        mask=_mask(side, "block"),
        **common,
    )


def _audio(side: dict[str, Any], common: dict[str, Any], path: str) -> AudioConfig:
    _refuse(side, _AUDIO_ONLY, path)
    return AudioConfig(
        conv_layers=conv_layers(side["feature_encoder_spec"]),
        positions_width=side["conv_pos_width"],
        positions_groups=side["conv_pos_groups"],
        positions_depth=side["conv_pos_depth"],
        mask=_mask(side, "block"),  # the data set makes them (facts, trap 3)
        **common,
    )


def _text(side: dict[str, Any], common: dict[str, Any], path: str, vocab_size: int | None) -> TextConfig:
    _refuse(side, _TEXT_ONLY, path)
    if vocab_size is None:
        raise ConfigError(f"{path[:-1]}: the size of the vocabulary is needed (rows of embed_tokens)")
    return TextConfig(
        vocab_size=vocab_size,
        max_positions=side["max_source_positions"],
        dropout=side["dropout"],
        mask=_mask(side, "random" if side["mask_length"] == 1 else "span"),
        **common,
    )


def _mask(side: dict[str, Any], kind: Any) -> MaskConfig:
    return MaskConfig(
        kind=kind,
        prob=side["mask_prob"],
        adjust=side["mask_prob_adjust"],
        length=side["mask_length"],
        inverse=side["inverse_mask"],
        add_spans=side["add_masks"],
    )


def conv_layers(spec: str) -> tuple[tuple[int, int, int], ...]:
    """Read ``feature_encoder_spec``, a Python expression such as ``[(512, 10, 5)] + [(512, 3, 2)] * 4``, as data.

    Raises:
        ConfigError: if it is anything but sums of such lists, each with or without a factor.
    """
    number, space = r"\s*(\d+)\s*", r"\s*"
    triple = rf"\({number},{number},{number},?{space}\)"
    term = rf"{space}\[{space}{triple}(?:{space},{space}{triple})*{space},?{space}\]{space}(?:\*{space}(\d+))?{space}"
    layers: list[tuple[int, int, int]] = []
    for part in spec.split("+"):
        whole = re.fullmatch(term, part)
        if whole is None:
            raise ConfigError(f"model.modalities.audio.feature_encoder_spec: cannot read {spec!r}")
        some = [(int(dim), int(kernel), int(stride)) for dim, kernel, stride in re.findall(triple, part)]
        layers += some * int(whole[7] or 1)
    return tuple(layers)


def _teacher_scope(model: dict[str, Any], side: dict[str, Any]) -> TeacherScope:
    if model["ema_encoder_only"]:
        return "encoder"
    return "frontend" if side["ema_local_encoder"] else "context"


def _alibi(side: dict[str, Any], num_heads: int, path: str) -> AlibiConfig | None:
    if not side["use_alibi_encoder"]:
        return None
    _refuse(side, {"num_alibi_heads": num_heads, "alibi_dims": 2}, path)  # alibi_dims belongs to images
    distance = side.get("alibi_distance", "manhattan")
    if distance not in ("manhattan", "euclidean"):
        raise ConfigError(f"{path}alibi_distance: {distance!r} is not supported")
    return AlibiConfig(
        distance=distance,
        scale=side["alibi_scale"],
        learned=side["learned_alibi_scale"],
        per_head=side["learned_alibi_scale_per_head"],
        per_layer=side["learned_alibi_scale_per_layer"],
    )


def _decoder(side: dict[str, Any], path: str) -> DecoderConfig:
    decoder = side["decoder"]
    if decoder["add_positions_masked"] and decoder["add_positions_all"]:
        raise ConfigError(f"{path}decoder: add_positions_masked and add_positions_all are both set")
    everywhere = "all" if decoder["add_positions_all"] else "none"
    return DecoderConfig(
        dim=decoder["decoder_dim"],
        groups=decoder["decoder_groups"],
        kernel=decoder["decoder_kernel"],
        num_layers=decoder["decoder_layers"],
        residual=decoder["decoder_residual"],
        projection_layers=decoder["projection_layers"],
        projection_ratio=decoder["projection_ratio"],
        add_positions="masked" if decoder["add_positions_masked"] else everywhere,  # type: ignore[arg-type]
        noise_std=side["mask_noise_std"],
        input_dropout=decoder["input_dropout"],
    )


def _refuse(section: dict[str, Any], only: dict[str, Any], path: str) -> None:
    for option, value in only.items():
        if section.get(option, value) != value:
            raise ConfigError(f"{path}{option}: {section[option]!r} is not supported (only {value!r})")
