"""Names and layouts of fairseq's tensors, over every tensor of the released configurations."""

import pytest
import torch

from deploy.export.fairseq import fairseq_name, from_fairseq, our_name, our_teacher_name, to_fairseq
from model.errors import ConfigError
from tests.golden.tables import state_dict_shapes

AUDIO, TEXT = "modality_encoders.AUDIO", "modality_encoders.TEXT"


@pytest.mark.parametrize("config", state_dict_shapes())
def test_names_go_there_and_back(config: str) -> None:
    theirs = list(state_dict_shapes()[config]["shapes"])
    ours = [our_name(name) for name in theirs]
    assert len(set(ours)) == len(theirs)
    assert [fairseq_name(name) for name in ours] == theirs


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.11.attn.proj.bias", "encoder.blocks.11.attention.output.bias"),
        ("recon_proj.weight", "reconstruction.weight"),
        (f"{AUDIO}.alibi_scale", "frontends.audio.alibi_scale"),
        (f"{AUDIO}.local_encoder.conv_layers.6.2.1.bias", "frontends.audio.local.layers.6.norm.bias"),
        (f"{AUDIO}.project_features.1.weight", "frontends.audio.local.norm.weight"),
        (f"{AUDIO}.relative_positional_encoder.1.0.weight", "frontends.audio.positions.0.weight"),
        (f"{AUDIO}.relative_positional_encoder.10.0.bias", "frontends.audio.positions.9.bias"),
        (f"{AUDIO}.context_encoder.blocks.7.mlp.fc2.weight", "frontends.audio.blocks.7.mlp.down.weight"),
        (f"{AUDIO}.decoder.proj.weight", "decoders.audio.projection.weight"),
        (f"{TEXT}.decoder.proj.2.bias", "decoders.text.projection.2.bias"),
        (f"{TEXT}.local_encoder.embed_positions.weight", "frontends.text.local.positions.weight"),
        (f"{TEXT}.local_encoder.layernorm_embedding.bias", "frontends.text.local.norm.bias"),
        (f"{TEXT}.context_encoder.norm.weight", "frontends.text.norm.weight"),
    ],
)
def test_each_has_the_others_name(theirs: str, ours: str) -> None:
    assert (our_name(theirs), fairseq_name(ours)) == (ours, theirs)


def test_a_teacher_of_blocks_alone_names_them_from_their_list_on() -> None:
    assert our_teacher_name("11.mlp.fc1.bias") == "encoder.blocks.11.mlp.up.bias"
    assert our_teacher_name("blocks.3.norm2.weight") == "encoder.blocks.3.norm2.weight"
    assert our_teacher_name(f"{AUDIO}.alibi_scale") == "frontends.audio.alibi_scale"


def test_qkv_changes_layout_there_and_back() -> None:
    heads, width = 4, 3
    fairseq = torch.arange(3 * heads * width)  # row numbers: part (q, k, v), head, channel
    ours = from_fairseq("blocks.0.attn.qkv.weight", fairseq, heads)
    assert ours.view(heads, 3, width)[1].tolist() == [[3, 4, 5], [15, 16, 17], [27, 28, 29]]
    assert torch.equal(to_fairseq("encoder.blocks.0.attention.qkv.bias", ours, heads), fairseq)
    assert torch.equal(from_fairseq("blocks.0.attn.proj.weight", fairseq, heads), fairseq)


@pytest.mark.parametrize(
    "name",
    [
        "shared_decoder.blocks.0.0.weight",
        "blocks.0.attn.logit_scale",
        f"{AUDIO}.relative_positional_encoder.0.1.1.0.weight",  # conv_pos_pre_ln
        f"{TEXT}.alibi_bias",
    ],
)
def test_unknown_tensor_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        our_name(name)


def test_our_unknown_tensor_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'heads\.ctc\.weight' has no counterpart"):
        fairseq_name("heads.ctc.weight")
