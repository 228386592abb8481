"""fairseq's configurations: every option arrives, and what our model lacks is refused by name."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from deploy.export.fairseq import model_config_from_fairseq
from model.config import AlibiConfig, ConfigError, DecoderConfig, LossConfig, TargetConfig

MINI = Path(__file__).parents[3] / "golden" / "image" / "mini.json"
IMAGE = "modalities.image."


def fairseq_config(**changes: Any) -> dict[str, Any]:
    """The committed case's model section, changed at dotted paths."""
    config: dict[str, Any] = copy.deepcopy(json.loads(MINI.read_text(encoding="utf-8"))["config_resolved"]["model"])
    for path, value in changes.items():
        section = config
        *folders, option = path.split(".")
        for folder in folders:
            section = section[folder]
        section[option] = value
    return config


def test_options_arrive() -> None:
    changes = {
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
    config = model_config_from_fairseq(fairseq_config(**changes), cls_rows=4)
    assert config.target == TargetConfig(
        top_k=1,
        end_of_block=True,
        batch_norm_layer=True,
        instance_norm_layer=False,
        layer_norm_layer=True,
        layer_norm=False,
        instance_norm=True,
    )
    assert config.loss == LossConfig(beta=0.5, scale=2.0, regression_weight=0.7, cls_weight=0.03, cls_rows=4)
    assert (config.image.prenet_depth, config.image.num_extra_tokens) == (0, 3)
    assert config.image.decoder == DecoderConfig(dim=32, groups=16, kernel=4, num_layers=2, residual=False)
    assert config.image.alibi == AlibiConfig(
        distance="euclidean", scale=0.3, learned=True, per_head=True, per_layer=True
    )


@pytest.mark.parametrize("option", ["masked", "all"])
def test_decoder_positions_arrive(option: str) -> None:
    config = fairseq_config(**{f"{IMAGE}decoder.add_positions_{option}": True})
    assert model_config_from_fairseq(config, cls_rows=4).image.decoder.add_positions == option


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("layer_norm_first", True),
        ("norm_affine", False),
        ("shared_decoder", {"decoder_dim": 8}),
        ("encoder_dropout", 0.1),
        ("layerdrop", 0.05),
        ("ema_encoder_only", True),
        (IMAGE + "ema_local_encoder", False),
        (IMAGE + "learned_alibi", True),
        (IMAGE + "transformer_decoder", True),
        (IMAGE + "enc_dec_transformer", True),
        (IMAGE + "prenet_dropout", 0.1),
        (IMAGE + "local_grad_mult", 0.5),
        (IMAGE + "embed_dim", 64),
        (IMAGE + "decoder.input_dropout", 0.1),
        (IMAGE + "decoder", None),
    ],
)
def test_unsupported_option_is_named_with_its_value(option: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        model_config_from_fairseq(fairseq_config(**{option: value}), cls_rows=4)
    assert f"model.{option}: {value!r}" in str(error.value)


@pytest.mark.parametrize(("option", "value"), [("alibi_distance", "chebyshev"), ("alibi_dims", 1)])
def test_unsupported_alibi_is_named_only_if_it_is_on(option: str, value: Any) -> None:
    model_config_from_fairseq(fairseq_config(**{IMAGE + option: value}), cls_rows=4)
    config = fairseq_config(**{IMAGE + option: value, IMAGE + "use_alibi_encoder": True})
    with pytest.raises(ConfigError, match=f"{option}: {value!r}"):
        model_config_from_fairseq(config, cls_rows=4)


def test_other_modalities_are_refused() -> None:
    config = fairseq_config()
    config["modalities"] = {"audio": {}}
    with pytest.raises(ConfigError, match=r"model\.modalities\.image: missing"):
        model_config_from_fairseq(config, cls_rows=4)
