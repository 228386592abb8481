"""A run of ours as fairseq's configuration: what its loaders read, and the values of the training."""

import dataclasses
from typing import Any

from deploy.export.encoder import only
from deploy.export.fairseq_config import model_config_from_fairseq
from deploy.export.fairseq_options import completed
from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from model.errors import ConfigError
from model.sections import DecoderConfig, ModalityConfig
from pretrain.config import RunConfig
from pretrain.errors import RunError

_HARMLESS = ("init_std", "loss.weight", "mask.length", "audio.mask.kind", "alibi.distance")
"""Ends of fields that do not come back: they say how weights began, weigh other modalities, do not count for the mask
or the distances that the model has, or are told by the task (``precompute_mask_config``)."""
_LOG_KEYS = ["ema_decay", "target_var", "pred_var", "model_norm", "ema_norm", "masked_pct"]


def fairseq_cfg(config: RunConfig, modality: str) -> dict[str, Any]:
    """The whole configuration of one modality of a run.

    Raises:
        RunError: if fairseq has no option for something that decides what the model computes; names it.
    """
    model = only(config.model, modality)
    section = model_section(config, modality)
    text = model.text
    vocab_size = None if text is None else text.vocab_size
    try:
        rows = model.modalities[modality].loss.cls_rows
        back = model_config_from_fairseq(section, cls_rows=rows, vocab_size=vocab_size)
    except ConfigError as error:
        raise RunError(f"fairseq has no such model: {error}") from error
    lost = _lost(model, back)
    if lost:
        raise RunError(f"fairseq has no option for {lost}")
    optim = config.optim
    per_process, processes = _shares(config, modality)
    return {
        "_name": None,
        "common": {"_name": None, "seed": config.training.seed, "fp16": False},
        "task": _task(config, modality),
        "dataset": {"_name": None, "num_workers": config.data.num_workers} | per_process,
        "distributed_training": {"_name": None, "distributed_world_size": processes},
        "criterion": {"_name": "model", "log_keys": _LOG_KEYS},
        "optimization": {
            "_name": None,
            "max_update": config.training.max_steps,
            "lr": [optim.lr],
            "clip_norm": optim.clip_norm,
            "update_freq": [1],
        },
        "optimizer": {
            "_name": "adam",
            "adam_betas": list(optim.betas),
            "adam_eps": optim.eps,
            "weight_decay": optim.weight_decay,
            "lr": [optim.lr],
        },
        "lr_scheduler": {"_name": "cosine", "warmup_updates": config.schedule.warmup_steps, "lr": [optim.lr]},
        "model": section,
    }


def _shares(config: RunConfig, modality: str) -> tuple[dict[str, Any], int]:
    """What one process takes per step, and the number of processes.

    fairseq sums its CLS term over the samples of one process, so their number comes first, and the batch second.
    """
    side, units = config.model.modalities[modality], config.units_per_step(modality)
    if config.data.audio is not None and modality == "audio":
        return {"max_tokens": int(config.data.audio.batch_seconds * config.data.audio.sample_rate)}, units
    per_process = side.loss.cls_rows // side.num_views
    if per_process < 1 or (units % per_process and side.loss.cls_weight == 0):
        per_process = units
    return {"batch_size": per_process}, max(1, round(units / per_process))


def _task(config: RunConfig, modality: str) -> dict[str, Any]:
    data = config.data
    if modality == "image":
        return {
            "_name": "mae_image_pretraining",
            "data": data.path,
            "input_size": data.image.size if data.image else None,
            "key": "source",
            "precompute_mask_config": {},
        }
    if modality == "text":
        return {
            "_name": "masked_lm",
            "data": data.path,
            "sample_break_mode": "none",
            "tokens_per_sample": data.text.tokens_per_sample if data.text else None,
            "include_index": True,
            "skip_masking": True,
            "d2v2_multi": True,
        }
    audio = data.audio
    assert audio is not None
    return {
        "_name": "audio_pretraining",
        "data": data.path,
        "sample_rate": audio.sample_rate,
        "min_sample_size": int(audio.min_seconds * audio.sample_rate),
        "max_sample_size": int(audio.max_seconds * audio.sample_rate),
        "normalize": audio.normalize,
        # without it the model draws spans
        "precompute_mask_config": None if config.model.audio and config.model.audio.mask.kind == "span" else {},
    }


def model_section(config: RunConfig, modality: str) -> dict[str, Any]:
    """The ``model`` section, with every option."""
    encoder, side = config.model.encoder, config.model.modalities[modality]
    loss, target = side.loss, side.target
    section = {
        "depth": encoder.depth,
        "embed_dim": encoder.dim,
        "num_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "norm_eps": encoder.norm_eps,
        "encoder_dropout": encoder.dropout,
        "attention_dropout": encoder.attention_dropout,
        "activation_dropout": encoder.activation_dropout,
        "post_mlp_drop": encoder.post_mlp_dropout,
        "dropout_input": encoder.input_dropout,
        "layerdrop": encoder.layer_dropout,
        "clone_batch": side.num_views,
        "average_top_k_layers": target.top_k,
        "end_of_block_targets": target.end_of_block,
        "batch_norm_target_layer": target.batch_norm_layer,
        "instance_norm_target_layer": target.instance_norm_layer,
        "layer_norm_target_layer": target.layer_norm_layer,
        "layer_norm_targets": target.layer_norm,
        "instance_norm_targets": target.instance_norm,
        "loss_beta": loss.beta,
        "loss_scale": loss.scale,
        "d2v_loss": loss.regression_weight,
        "cls_loss": loss.cls_weight,
        "recon_loss": loss.reconstruction_weight,
        "ema_decay": config.ema.start,
        "ema_end_decay": config.ema.end,
        "ema_anneal_end_step": config.ema.anneal_steps,
        "ema_encoder_only": side.teacher_scope == "encoder",
        "min_target_var": config.health.min_target_spread,
        "min_pred_var": config.health.min_prediction_spread,
        "supported_modality": modality.upper(),
        "max_update": config.training.max_steps,
        "seed": config.training.seed,
        "modalities": {modality: _side(side) | _own(side, encoder.dim)},
    }
    return completed(section)


def _side(side: ModalityConfig) -> dict[str, Any]:
    mask, decoder, alibi = side.mask, side.decoder, side.alibi
    options = {
        "prenet_depth": side.prenet_depth,
        "prenet_dropout": side.prenet_dropout,
        "prenet_layerdrop": side.prenet_layer_dropout,
        "num_extra_tokens": side.num_extra_tokens,
        "init_extra_token_zero": side.extra_tokens_zero_init,
        "ema_local_encoder": side.teacher_scope == "frontend",
        "mask_prob": mask.prob,
        "mask_prob_adjust": mask.adjust,
        "mask_length": 1 if mask.kind == "random" else mask.length,
        "inverse_mask": mask.inverse,
        "add_masks": mask.add_spans,
        "mask_noise_std": decoder.noise_std,
        "decoder": _decoder(decoder),
        "use_alibi_encoder": alibi is not None,
    }
    if alibi is not None:
        options |= {
            "alibi_scale": alibi.scale,
            "learned_alibi_scale": alibi.learned,
            "learned_alibi_scale_per_head": alibi.per_head,
            "learned_alibi_scale_per_layer": alibi.per_layer,
        }
    return options


def _own(side: ModalityConfig, dim: int) -> dict[str, Any]:
    if isinstance(side, ImageConfig):
        sizes = {"input_size": side.image_size, "patch_size": side.patch_size, "in_chans": side.in_channels}
        return sizes | {"embed_dim": dim} | ({"alibi_distance": side.alibi.distance} if side.alibi else {})
    if isinstance(side, AudioConfig):
        return {
            "feature_encoder_spec": str(list(side.conv_layers)),
            "conv_pos_width": side.positions_width,
            "conv_pos_groups": side.positions_groups,
            "conv_pos_depth": side.positions_depth,
        }
    assert isinstance(side, TextConfig)
    return {"max_source_positions": side.max_positions, "dropout": side.dropout}


def _decoder(decoder: DecoderConfig) -> dict[str, Any]:
    return {
        "decoder_dim": decoder.dim,
        "decoder_groups": decoder.groups,
        "decoder_kernel": decoder.kernel,
        "decoder_layers": decoder.num_layers,
        "decoder_residual": decoder.residual,
        "projection_layers": decoder.projection_layers,
        "projection_ratio": decoder.projection_ratio,
        "add_positions_masked": decoder.add_positions == "masked",
        "add_positions_all": decoder.add_positions == "all",
        "input_dropout": decoder.input_dropout,
    }


def _lost(ours: ModelConfig, back: ModelConfig) -> str | None:
    """The first field that does not come back from fairseq's options."""
    before, after = _flat(dataclasses.asdict(ours)), _flat(dataclasses.asdict(back))
    return next((f"model.{n}" for n in before if before[n] != after.get(n) and not n.endswith(_HARMLESS)), None)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
