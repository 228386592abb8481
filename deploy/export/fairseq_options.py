"""Every option of fairseq's data2vec 2.0 models with its default (``Data2VecMultiConfig`` and what it holds).

A file knows the options that fairseq had when it was written; fairseq fills in the others, and so does ``completed``.
"""

from typing import Any

_DECODER: dict[str, Any] = {
    "decoder_dim": 384,
    "decoder_groups": 16,
    "decoder_kernel": 5,
    "decoder_layers": 5,
    "input_dropout": 0.1,
    "add_positions_masked": False,
    "add_positions_all": False,
    "decoder_residual": True,
    "projection_layers": 1,
    "projection_ratio": 2.0,
}
_MODALITY: dict[str, Any] = {
    "prenet_depth": 4,
    "prenet_layerdrop": 0.0,
    "prenet_dropout": 0.0,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "num_extra_tokens": 0,
    "init_extra_token_zero": True,
    "mask_noise_std": 0.01,
    "mask_prob_min": None,
    "mask_prob": 0.7,
    "inverse_mask": False,
    "mask_prob_adjust": 0.0,
    "keep_masked_pct": 0.0,
    "mask_length": 5,
    "add_masks": False,
    "remove_masks": False,
    "mask_dropout": 0.0,
    "encoder_zero_mask": True,
    "mask_channel_prob": 0.0,
    "mask_channel_length": 64,
    "ema_local_encoder": False,
    "local_grad_mult": 1.0,
    "use_alibi_encoder": False,
    "alibi_scale": 1.0,
    "learned_alibi": False,
    "alibi_max_pos": None,
    "learned_alibi_scale": False,
    "learned_alibi_scale_per_head": False,
    "learned_alibi_scale_per_layer": False,
    "decoder": _DECODER,
}
_OWN: dict[str, dict[str, Any]] = {
    "audio": {
        "type": "AUDIO",
        "extractor_mode": "layer_norm",
        "feature_encoder_spec": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        "conv_pos_width": 95,
        "conv_pos_groups": 16,
        "conv_pos_depth": 5,
        "conv_pos_pre_ln": False,
    },
    "image": {
        "type": "IMAGE",
        "input_size": 224,
        "in_chans": 3,
        "patch_size": 16,
        "embed_dim": 768,
        "alibi_dims": 2,
        "alibi_distance": "manhattan",
        "fixed_positions": True,
        "transformer_decoder": False,
        "enc_dec_transformer": False,
    },
    "text": {
        "type": "TEXT",
        "max_source_positions": 512,
        "learned_pos": True,
        "dropout": 0.1,
        "no_scale_embedding": True,
        "layernorm_embedding": True,
        "no_token_positional_embeddings": False,
    },
}
_MODEL: dict[str, Any] = {
    "_name": "data2vec_multi",
    "loss_beta": 0.0,
    "loss_scale": None,
    "depth": 8,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "num_heads": 12,
    "norm_eps": 1e-6,
    "norm_affine": True,
    "encoder_dropout": 0.1,
    "post_mlp_drop": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "layerdrop": 0.0,
    "embed_dim": 768,
    "mlp_ratio": 4.0,
    "layer_norm_first": False,
    "average_top_k_layers": 8,
    "end_of_block_targets": False,
    "clone_batch": 1,
    "layer_norm_target_layer": False,
    "batch_norm_target_layer": False,
    "instance_norm_target_layer": False,
    "instance_norm_targets": False,
    "layer_norm_targets": False,
    "ema_decay": 0.999,
    "ema_same_dtype": True,
    "log_norms": True,
    "ema_end_decay": 0.9999,
    "ema_encoder_only": True,
    "shared_decoder": None,
    "min_target_var": 0.1,
    "min_pred_var": 0.01,
    "supported_modality": None,
    "mae_init": False,
    "skip_ema": False,
    "cls_loss": 0.0,
    "recon_loss": 0.0,
    "d2v_loss": 1.0,
    "decoder_group": False,
}
_MODALITIES = {"_name": None} | {name: own | _MODALITY for name, own in _OWN.items()}


def completed(model: dict[str, Any]) -> dict[str, Any]:
    """A ``model`` section with every option: its own values over the defaults; options that nobody knows stay."""
    whole = _over(_MODEL | {"modalities": _MODALITIES}, model)
    for name in _OWN:
        side = whole["modalities"][name]
        if side is not None:
            side.setdefault("num_alibi_heads", whole["num_heads"])
            side.setdefault("model_depth", whole["depth"])
    return whole


def _over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values laid over defaults; a new dictionary at every depth."""
    whole = {name: _over(value, {}) if isinstance(value, dict) else value for name, value in base.items()}
    for name, value in values.items():
        below = whole.get(name)
        whole[name] = _over(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
    return whole
