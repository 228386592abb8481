"""fairseq's configurations: every option arrives, and what our model lacks is refused by name."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from deploy.export.fairseq_config import conv_layers, model_config_from_fairseq, training_only
from model.config import ModelConfig
from model.errors import ConfigError
from model.sections import AlibiConfig, DecoderConfig, LossConfig, MaskConfig, TargetConfig

GOLDEN = Path(__file__).parents[3] / "golden"
IMAGE, AUDIO, TEXT = (f"modalities.{name}." for name in ("image", "audio", "text"))


def fairseq_config(modality: str = "image", **changes: Any) -> dict[str, Any]:
    """The committed case's model section, changed at dotted paths."""
    text = (GOLDEN / modality / "mini.json").read_text(encoding="utf-8")
    config: dict[str, Any] = copy.deepcopy(json.loads(text)["config_resolved"]["model"])
    for path, value in changes.items():
        section = config
        *folders, option = path.split(".")
        for folder in folders:
            section = section[folder]
        section[option] = value
    return config


def ours(modality: str = "image", **changes: Any) -> ModelConfig:
    return model_config_from_fairseq(fairseq_config(modality, **changes), cls_rows=4, vocab_size=120)


TARGETS: dict[str, Any] = {
    "average_top_k_layers": 1,
    "end_of_block_targets": True,
    "batch_norm_target_layer": True,
    "instance_norm_target_layer": False,
    "layer_norm_target_layer": True,
    "layer_norm_targets": False,
    "instance_norm_targets": True,
    "loss_beta": 0.5,
    "loss_scale": 2.0,
    "d2v_loss": 0.7,
}
OUR_TARGET = TargetConfig(
    top_k=1,
    end_of_block=True,
    batch_norm_layer=True,
    instance_norm_layer=False,
    layer_norm_layer=True,
    layer_norm=False,
    instance_norm=True,
)


def test_image_options_arrive() -> None:
    changes = {
        "cls_loss": 0.03,
        IMAGE + "prenet_depth": 0,
        IMAGE + "num_extra_tokens": 3,
        IMAGE + "decoder.decoder_kernel": 4,
        IMAGE + "decoder.decoder_residual": False,
        IMAGE + "use_alibi_encoder": True,
        IMAGE + "alibi_distance": "euclidean",
        IMAGE + "alibi_scale": 0.3,
        IMAGE + "learned_alibi_scale": True,
        IMAGE + "learned_alibi_scale_per_head": True,
        IMAGE + "learned_alibi_scale_per_layer": True,
    }
    image = ours(**TARGETS, **changes).image
    assert image.target == OUR_TARGET
    assert image.loss == LossConfig(beta=0.5, scale=2.0, regression_weight=0.7, cls_weight=0.03, cls_rows=4)
    assert (image.prenet_depth, image.num_extra_tokens) == (0, 3)
    assert image.decoder == DecoderConfig(dim=32, groups=16, kernel=4, num_layers=2, residual=False)
    assert image.alibi == AlibiConfig(distance="euclidean", scale=0.3, learned=True, per_head=True, per_layer=True)


def test_audio_options_arrive() -> None:
    changes = {
        "clone_batch": 5,
        AUDIO + "prenet_depth": 2,
        AUDIO + "prenet_dropout": 0.1,
        AUDIO + "prenet_layerdrop": 0.05,
        AUDIO + "feature_encoder_spec": "[(8, 10, 5)] + [(16, 3, 2)] * 2",
        AUDIO + "conv_pos_width": 20,
        AUDIO + "conv_pos_groups": 4,
        AUDIO + "conv_pos_depth": 4,
        AUDIO + "mask_prob": 0.55,
        AUDIO + "mask_prob_adjust": 0.1,
        AUDIO + "mask_length": 7,
        AUDIO + "mask_noise_std": 0.02,
        AUDIO + "add_masks": True,
        AUDIO + "learned_alibi_scale_per_layer": True,
        AUDIO + "decoder.projection_layers": 3,
        AUDIO + "decoder.projection_ratio": 1.5,
        AUDIO + "decoder.input_dropout": 0.2,
    }
    config = ours("audio", **TARGETS, **changes)
    assert config.modalities.keys() == {"audio"}
    audio = config.audio
    assert (audio.num_views, audio.prenet_depth, audio.prenet_dropout, audio.prenet_layer_dropout) == (5, 2, 0.1, 0.05)
    assert audio.conv_layers == ((8, 10, 5), (16, 3, 2), (16, 3, 2))
    assert (audio.positions_width, audio.positions_groups, audio.positions_depth) == (20, 4, 4)
    assert audio.positions_kernel == 5
    assert audio.mask == MaskConfig(kind="block", prob=0.55, adjust=0.1, length=7, add_spans=True)
    assert audio.alibi == AlibiConfig(per_layer=True)
    assert audio.teacher_scope == "context"
    assert audio.target == OUR_TARGET
    assert audio.loss == LossConfig(beta=0.5, scale=2.0, regression_weight=0.7, cls_rows=4)
    assert audio.decoder == DecoderConfig(
        dim=16,
        groups=16,
        kernel=7,
        num_layers=2,
        projection_layers=3,
        projection_ratio=1.5,
        noise_std=0.02,
        input_dropout=0.2,
    )


def test_text_options_arrive() -> None:
    changes = {TEXT + "prenet_depth": 1, TEXT + "dropout": 0.2, TEXT + "max_source_positions": 70}
    text = ours("text", **TARGETS, **changes).text
    assert (text.prenet_depth, text.dropout, text.max_positions, text.vocab_size) == (1, 0.2, 70, 120)
    assert text.mask == MaskConfig(kind="random", prob=0.48, length=1)
    assert text.teacher_scope == "encoder"
    assert text.target == OUR_TARGET
    assert text.decoder == DecoderConfig(
        dim=32, groups=1, kernel=9, num_layers=2, residual=False, projection_layers=2, projection_ratio=2.0
    )
    spans = ours("text", **{TEXT + "mask_length": 3, TEXT + "add_masks": True}).text.mask
    assert spans == MaskConfig(kind="span", prob=0.48, length=3, add_spans=True)


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_encoder_options_arrive(modality: str) -> None:
    theirs = {
        "norm_eps": 1e-3,
        "mlp_ratio": 2.0,
        "encoder_dropout": 0.1,
        "attention_dropout": 0.2,
        "activation_dropout": 0.3,
        "post_mlp_drop": 0.4,
        "dropout_input": 0.5,
        "layerdrop": 0.05,
    }
    encoder = ours(modality, **theirs).encoder
    assert dataclasses.asdict(encoder) == {
        "depth": 2,
        "dim": 32,
        "num_heads": 4,
        "init_std": 0.02,
        "norm_eps": 1e-3,
        "mlp_ratio": 2.0,
        "dropout": 0.1,
        "attention_dropout": 0.2,
        "activation_dropout": 0.3,
        "post_mlp_dropout": 0.4,
        "input_dropout": 0.5,
        "layer_dropout": 0.05,
    }


@pytest.mark.parametrize(
    ("encoder_only", "local_too", "scope"),
    [(True, False, "encoder"), (True, True, "encoder"), (False, False, "context"), (False, True, "frontend")],
)
def test_teacher_scope_arrives(encoder_only: bool, local_too: bool, scope: str) -> None:
    changes = {"ema_encoder_only": encoder_only, AUDIO + "ema_local_encoder": local_too}
    assert ours("audio", **changes).audio.teacher_scope == scope


@pytest.mark.parametrize("option", ["masked", "all"])
def test_decoder_positions_arrive(option: str) -> None:
    assert ours(**{f"{IMAGE}decoder.add_positions_{option}": True}).image.decoder.add_positions == option


@pytest.mark.parametrize(
    ("modality", "option", "value"),
    [
        ("image", "layer_norm_first", True),
        ("image", "norm_affine", False),
        ("image", "shared_decoder", {"decoder_dim": 8}),
        ("image", IMAGE + "learned_alibi", True),
        ("image", IMAGE + "transformer_decoder", True),
        ("image", IMAGE + "enc_dec_transformer", True),
        ("image", IMAGE + "embed_dim", 64),
        ("image", IMAGE + "decoder", None),
        ("audio", AUDIO + "extractor_mode", "default"),
        ("audio", AUDIO + "conv_pos_pre_ln", True),
        ("audio", AUDIO + "num_alibi_heads", 2),
        ("text", TEXT + "learned_pos", False),
        ("text", TEXT + "no_scale_embedding", False),
        ("text", TEXT + "layernorm_embedding", False),
        ("text", TEXT + "no_token_positional_embeddings", True),
    ],
)
def test_unsupported_option_is_named_with_its_value(modality: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        ours(modality, **{option: value})
    assert f"model.{option}: {value!r}" in str(error.value)


@pytest.mark.parametrize(("modality", "path"), [("image", IMAGE), ("audio", AUDIO), ("text", TEXT)])
def test_options_that_only_training_reads_are_left_out_and_named(modality: str, path: str) -> None:
    changes = {
        "start_drop_path_rate": 0.05,
        "end_drop_path_rate": 0.1,
        path + "end_drop_path_rate": 0.2,
        path + "mask_prob_min": 0.2,
        path + "keep_masked_pct": 0.1,
        path + "remove_masks": True,
        path + "mask_dropout": 0.1,
        path + "mask_channel_prob": 0.25,
        path + "encoder_zero_mask": False,
        path + "local_grad_mult": 0.5,
    }
    assert ours(modality, **changes) == ours(modality)
    assert training_only(fairseq_config(modality)) == []
    assert training_only(fairseq_config(modality, **changes)) == [f"model.{n} {v!r}" for n, v in changes.items()]


@pytest.mark.parametrize(("option", "value"), [("alibi_distance", "chebyshev"), ("alibi_dims", 1)])
def test_unsupported_alibi_is_named_only_if_it_is_on(option: str, value: Any) -> None:
    ours(**{IMAGE + option: value})
    with pytest.raises(ConfigError, match=f"{option}: {value!r}"):
        ours(**{IMAGE + option: value, IMAGE + "use_alibi_encoder": True})


def test_the_modality_is_the_supported_one_or_the_only_one() -> None:
    config = fairseq_config("audio", supported_modality=None)
    with pytest.raises(ConfigError, match=r"model\.supported_modality: '' does not say which of image, audio, text"):
        model_config_from_fairseq(config, cls_rows=4)
    config["modalities"] = {"audio": config["modalities"]["audio"]}
    assert model_config_from_fairseq(config, cls_rows=4).modalities.keys() == {"audio"}
    config = fairseq_config("text", supported_modality="Modality.TEXT")
    assert model_config_from_fairseq(config, cls_rows=4, vocab_size=9).modalities.keys() == {"text"}


def test_text_needs_the_size_of_its_vocabulary() -> None:
    with pytest.raises(ConfigError, match=r"model\.modalities\.text: the size of the vocabulary"):
        model_config_from_fairseq(fairseq_config("text"), cls_rows=4)


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]", 7),
        ("[(8,10,5),(8,3,2)]*2", 4),
        (" [ ( 8 , 10 , 5 , ) , ] ", 1),
    ],
)
def test_feature_encoder_is_read(spec: str, layers: int) -> None:
    assert list(conv_layers(spec)) == eval(spec)
    assert len(conv_layers(spec)) == layers


@pytest.mark.parametrize(
    "spec", ["", "[]", "[(512, 10)]", "__import__('os')", "[(8, 3, 2)] * n", "[(8,3,2)] - [(8,3,2)]"]
)
def test_feature_encoder_is_not_run(spec: str) -> None:
    with pytest.raises(ConfigError, match="feature_encoder_spec: cannot read"):
        conv_layers(spec)
