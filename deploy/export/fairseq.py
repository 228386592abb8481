"""fairseq's data2vec 2.0 models and ours: names and layouts of tensors, and configurations. No torch at import."""

import re
from typing import TYPE_CHECKING, Any

from model.config import (
    AlibiConfig,
    ConfigError,
    DecoderConfig,
    EncoderConfig,
    ImageConfig,
    LossConfig,
    MaskConfig,
    ModelConfig,
    TargetConfig,
)

if TYPE_CHECKING:
    from torch import Tensor

_MODALITY = "modality_encoders.IMAGE."
_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.output",
    "norm2": "norm2",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
}
_TABLE = {
    "blocks.#.BLOCK.*": "encoder.blocks.#.BLOCK.*",
    _MODALITY + "extra_tokens": "frontends.image.extra_tokens",
    _MODALITY + "alibi_scale": "frontends.image.alibi_scale",
    _MODALITY + "fixed_positional_encoder.positions": "frontends.image.positions",
    _MODALITY + "local_encoder.proj.*": "frontends.image.patch.*",
    _MODALITY + "context_encoder.norm.*": "frontends.image.norm.*",
    _MODALITY + "context_encoder.blocks.#.BLOCK.*": "frontends.image.blocks.#.BLOCK.*",
    _MODALITY + "decoder.blocks.#.0.*": "decoders.image.layers.#.*",
    _MODALITY + "decoder.proj.*": "decoders.image.projection.*",
    "recon_proj.*": "reconstruction.*",
}
"""fairseq's name -> ours. ``#`` is a number, ``*`` is weight or bias, ``BLOCK`` any row of ``_BLOCK``."""


def our_name(fairseq_name: str) -> str:
    """Our name of a fairseq tensor; the teacher's (``_ema``) have the same names as the student's.

    Raises:
        ConfigError: for a tensor that our model does not have.
    """
    return _translate(fairseq_name, [(theirs, ours) for theirs, ours in _rows()])


def fairseq_name(our_name: str) -> str:
    """fairseq's name of one of our tensors.

    Raises:
        ConfigError: for a tensor that fairseq does not have.
    """
    return _translate(our_name, [(ours, theirs) for theirs, ours in _rows()])


def from_fairseq(name: str, tensor: "Tensor", num_heads: int) -> "Tensor":
    """A fairseq tensor (weight, gradient, average) in our layout; ``name`` is either name of it.

    fairseq packs the rows of qkv as (3, H, d), we as (H, 3, d), so that tensor parallelism can cut heads.
    """
    return _swap_heads(tensor, 3, num_heads) if ".qkv." in name else tensor


def to_fairseq(name: str, tensor: "Tensor", num_heads: int) -> "Tensor":
    """The inverse of ``from_fairseq``."""
    return _swap_heads(tensor, num_heads, 3) if ".qkv." in name else tensor


def _swap_heads(tensor: "Tensor", first: int, second: int) -> "Tensor":
    return tensor.unflatten(0, (first, second, -1)).transpose(0, 1).reshape(tensor.shape)


def _rows() -> list[tuple[str, str]]:
    rows = []
    for theirs, ours in _TABLE.items():
        for their_part, our_part in _BLOCK.items() if "BLOCK" in theirs else [("", "")]:
            rows.append((theirs.replace("BLOCK", their_part), ours.replace("BLOCK", our_part)))
    return rows


def _translate(name: str, rows: list[tuple[str, str]]) -> str:
    for source, target in rows:
        pattern = re.escape(source).replace(r"\#", r"(?P<number>\d+)").replace(r"\*", "(?P<kind>weight|bias)")
        match = re.fullmatch(pattern, name)
        if match:
            found = match.groupdict()
            return target.replace("#", found.get("number", "")).replace("*", found.get("kind", ""))
    raise ConfigError(f"tensor {name!r} has no counterpart")


_REFUSED: dict[str, Any] = {
    "layer_norm_first": False,
    "norm_affine": True,
    "shared_decoder": None,
    "ema_encoder_only": False,
    "encoder_dropout": 0.0,
    "post_mlp_drop": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "layerdrop": 0.0,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
}
_REFUSED_IMAGE: dict[str, Any] = {
    "prenet_layerdrop": 0.0,
    "prenet_dropout": 0.0,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "mask_prob_min": None,
    "keep_masked_pct": 0.0,
    "add_masks": False,
    "mask_dropout": 0.0,
    "mask_channel_prob": 0.0,
    "local_grad_mult": 1.0,
    "ema_local_encoder": True,
    "learned_alibi": False,
    "fixed_positions": True,
    "transformer_decoder": False,
    "enc_dec_transformer": False,
}
"""Options with the only value that our image model knows."""


def model_config_from_fairseq(model: dict[str, Any], *, cls_rows: int) -> ModelConfig:
    """The configuration of an image model.

    Args:
        model: the resolved ``model`` section of a fairseq configuration (of a checkpoint's ``cfg``).
        cls_rows: rows that the CLS term is summed over: batch per GPU times ``clone_batch``.
    Raises:
        ConfigError: for an option that our model does not have, naming it and its value.
    """
    image = model["modalities"].get("image")
    if image is None:
        raise ConfigError("model.modalities.image: missing; only image models can be read")
    if image["decoder"] is None:
        raise ConfigError("model.modalities.image.decoder: None is not supported (a pretraining model has one)")
    _refuse(model, _REFUSED, "model.")
    _refuse(image, _REFUSED_IMAGE, "model.modalities.image.")
    _refuse(image["decoder"], {"input_dropout": 0.0}, "model.modalities.image.decoder.")
    _refuse(image, {"embed_dim": model["embed_dim"]}, "model.modalities.image.")
    return ModelConfig(
        num_views=model["clone_batch"],
        encoder=EncoderConfig(
            depth=model["depth"],
            dim=model["embed_dim"],
            num_heads=model["num_heads"],
            mlp_ratio=model["mlp_ratio"],
            norm_eps=model["norm_eps"],
        ),
        image=ImageConfig(
            image_size=image["input_size"],
            patch_size=image["patch_size"],
            in_channels=image["in_chans"],
            prenet_depth=image["prenet_depth"],
            num_extra_tokens=image["num_extra_tokens"],
            extra_tokens_zero_init=image["init_extra_token_zero"],
            alibi=_alibi(image, model["num_heads"]),
            mask=MaskConfig(
                prob=image["mask_prob"],
                adjust=image["mask_prob_adjust"],
                length=image["mask_length"],
                inverse=image["inverse_mask"],
            ),
            decoder=_decoder(image),
        ),
        target=TargetConfig(
            top_k=model["average_top_k_layers"],
            end_of_block=model["end_of_block_targets"],
            batch_norm_layer=model["batch_norm_target_layer"],
            instance_norm_layer=model["instance_norm_target_layer"],
            layer_norm_layer=model["layer_norm_target_layer"],
            layer_norm=model["layer_norm_targets"],
            instance_norm=model["instance_norm_targets"],
        ),
        loss=LossConfig(
            beta=model["loss_beta"],
            scale=model["loss_scale"],
            regression_weight=model["d2v_loss"],
            cls_weight=model["cls_loss"],
            cls_rows=cls_rows,
            reconstruction_weight=model["recon_loss"],
        ),
    )


def _alibi(image: dict[str, Any], num_heads: int) -> AlibiConfig | None:
    if not image["use_alibi_encoder"]:
        return None
    _refuse(image, {"alibi_dims": 2, "num_alibi_heads": num_heads}, "model.modalities.image.")
    if image["alibi_distance"] not in ("manhattan", "euclidean"):
        raise ConfigError(f"model.modalities.image.alibi_distance: {image['alibi_distance']!r} is not supported")
    return AlibiConfig(
        distance=image["alibi_distance"],
        scale=image["alibi_scale"],
        learned=image["learned_alibi_scale"],
        per_head=image["learned_alibi_scale_per_head"],
        per_layer=image["learned_alibi_scale_per_layer"],
    )


def _decoder(image: dict[str, Any]) -> DecoderConfig:
    decoder = image["decoder"]
    if decoder["add_positions_masked"] and decoder["add_positions_all"]:
        raise ConfigError("model.modalities.image.decoder: add_positions_masked and add_positions_all are both set")
    everywhere = "all" if decoder["add_positions_all"] else "none"
    return DecoderConfig(
        dim=decoder["decoder_dim"],
        groups=decoder["decoder_groups"],
        kernel=decoder["decoder_kernel"],
        num_layers=decoder["decoder_layers"],
        residual=decoder["decoder_residual"],
        add_positions="masked" if decoder["add_positions_masked"] else everywhere,  # type: ignore[arg-type]
        noise_std=image["mask_noise_std"],
    )


def _refuse(section: dict[str, Any], only: dict[str, Any], path: str) -> None:
    for option, value in only.items():
        if section.get(option, value) != value:
            raise ConfigError(f"{path}{option}: {section[option]!r} is not supported (only {value!r})")
