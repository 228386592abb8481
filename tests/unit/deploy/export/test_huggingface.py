"""The exported model equals ours, in all modalities, with and without heads, on padded batches."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCTC

import deploy.export.registration  # noqa: F401  the Auto classes need it
from deploy.export.data2vec2.modeling import (
    Data2Vec2ForAudioClassification,
    Data2Vec2ForCTC,
    Data2Vec2ForImageClassification,
    Data2Vec2ForSequenceClassification,
    Data2Vec2Model,
)
from deploy.export.huggingface import difference, write_model
from deploy.export.trained import DTYPES, Model
from deploy.export.transformers_config import transformers_config
from tests.unit.deploy.export.encoders import (
    CONFIGS,
    ENCODER,
    NUM_OUTPUTS,
    audio,
    batch,
    head_of,
    image,
    random_encoder,
    text,
)

HEADS = {
    "image": (image(), head_of("image-classification")),
    "image-first": (image(num_extra_tokens=2), head_of("image-classification", norm=False, pooling="first")),
    "text": (text(), head_of("sequence-classification")),
    "audio": (audio(num_extra_tokens=1), head_of("ctc")),
}


def bare(name: str) -> Model:
    return Model(random_encoder(CONFIGS[name]), None, {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_reloaded_export_is_equal(tmp_path: Path, name: str, dtype: str) -> None:
    """Stored in any precision, the difference in fp32 arithmetic is 0."""
    model, inputs = bare(name), batch(CONFIGS[name])
    (modality,) = CONFIGS[name].modalities
    model.round(DTYPES[dtype])
    write_model(model, DTYPES[dtype], tmp_path)
    assert difference(model.outputs(inputs), tmp_path, modality, inputs) == 0.0
    assert AutoModel.from_pretrained(tmp_path).dtype == DTYPES[dtype]


@pytest.mark.parametrize("name", HEADS)
def test_reloaded_export_with_head_is_equal(tmp_path: Path, name: str) -> None:
    config, (head, weights) = HEADS[name]
    model, inputs = Model(random_encoder(config), head, weights), batch(config)
    (modality,) = config.modalities
    write_model(model, torch.float32, tmp_path)
    ours = model.outputs(inputs)
    assert len(ours) == 2 and ours[1].shape[-1] == NUM_OUTPUTS
    assert difference(ours, tmp_path, modality, inputs) == 0.0
    weights["classifier.bias"] += 0.5
    assert difference(model.outputs(inputs), tmp_path, modality, inputs) >= 0.49


@torch.no_grad()
@pytest.mark.parametrize("parameter", ["frontends.audio.alibi_scale", "frontends.audio.positions.3.bias"])
def test_difference_is_seen(tmp_path: Path, parameter: str) -> None:
    model, inputs = bare("audio"), batch(CONFIGS["audio"])
    write_model(model, torch.float32, tmp_path)
    dict(model.encoder.named_parameters())[parameter].mul_(1.01)
    assert 1e-6 < difference(model.outputs(inputs), tmp_path, "audio", inputs) < 0.1


@torch.no_grad()
@pytest.mark.parametrize("name", ["image-alibi", "audio", "text"])
def test_bf16_arithmetic(tmp_path: Path, name: str) -> None:
    """Attention adds its bias in fp32, as ours does; rounding differs in few places."""
    model, inputs = bare(name), batch(CONFIGS[name])
    (modality,) = CONFIGS[name].modalities
    write_model(model, torch.bfloat16, tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    source = inputs.source if modality == "text" else inputs.source.bfloat16()
    output = reloaded(**{reloaded.main_input_name: inputs.source}, attention_mask=inputs.attention_mask)
    ours = model.encoder.to(torch.bfloat16).features(source, modality=modality, padding=inputs.padding)
    assert output.last_hidden_state.dtype == torch.bfloat16
    assert (output.last_hidden_state - ours).abs().max() < 0.1


@torch.no_grad()
@pytest.mark.parametrize("name", ["audio", "audio-even-kernel", "text", "text-prenet"])
def test_padding_changes_nothing_that_it_should_not(tmp_path: Path, name: str) -> None:
    """A sample alone gives what it gives in a padded batch, save for what convolutional positions see of padding."""
    model, inputs = bare(name), batch(CONFIGS[name])
    write_model(model, torch.float32, tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert inputs.attention_mask is not None
    whole = reloaded(**{reloaded.main_input_name: inputs.source}, attention_mask=inputs.attention_mask)
    assert whole.attention_mask.shape == whole.last_hidden_state.shape[:2]
    length = int(inputs.attention_mask[2].sum())
    alone = reloaded(**{reloaded.main_input_name: inputs.source[2:3, :length]})
    count = alone.last_hidden_state.shape[1]
    assert alone.attention_mask is None
    assert whole.attention_mask[2].tolist() == [1] * count + [0] * (whole.attention_mask.shape[1] - count)
    if name.startswith("text"):
        assert torch.allclose(whole.last_hidden_state[2, :count], alone.last_hidden_state[0], atol=1e-5)
        assert torch.allclose(whole.pooler_output[2], alone.pooler_output[0], atol=1e-5)
    changed = inputs.source.clone()
    changed[2, length:] = 1  # <pad> for text; what lies under the padding is not heard
    again = reloaded(**{reloaded.main_input_name: changed}, attention_mask=inputs.attention_mask)
    others = [0, 1, 3]
    assert torch.equal(again.last_hidden_state[others], whole.last_hidden_state[others])


def test_keys_states_and_wrong_inputs(tmp_path: Path) -> None:
    write_model(bare("image"), torch.float32, tmp_path)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(images, output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, 1 + 36, 24)
    assert len(output.hidden_states) == 1 + 2 + 2
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 1:].mean(dim=1))
    assert torch.equal(model(images, return_dict=False)[0], output.last_hidden_state)
    with pytest.raises(ValueError, match=r"pixel_values: expected \('batch', 3, 48, 48\), got \(2, 3, 64, 64\)"):
        model(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match="this is an encoder of image: give it pixel_values"):
        model(input_ids=torch.ones(2, 4))
    words = Data2Vec2Model(transformers_config(CONFIGS["text"], torch.float32))
    with pytest.raises(ValueError, match="input_ids: at most 20 tokens, got 21"):
        words(input_ids=torch.ones(1, 21, dtype=torch.long))


@pytest.mark.parametrize("name", ["image-alibi", "audio", "text"])
def test_fresh_model_has_our_shapes_and_initial_values(name: str) -> None:
    """Without weights to load, as when a user trains the class from scratch."""
    ours, (modality,) = random_encoder(CONFIGS[name]).state_dict(), CONFIGS[name].modalities
    fresh = Data2Vec2Model(transformers_config(CONFIGS[name], torch.float32)).state_dict()
    assert {n: v.shape for n, v in fresh.items()} == {n: v.shape for n, v in ours.items()}
    assert 0.015 < fresh["encoder.blocks.0.mlp.up.weight"].std() < 0.025
    if modality == "image":
        assert torch.equal(fresh["frontends.image.positions"], ours["frontends.image.positions"])
        assert fresh["frontends.image.norm.bias"].abs().max() == 0
    if modality != "text":
        assert fresh[f"frontends.{modality}.alibi_scale"].unique().tolist() == [1.0]


@pytest.mark.parametrize("kind", [Data2Vec2ForImageClassification, Data2Vec2ForAudioClassification])
def test_classifiers_of_pooled_tokens_learn(kind: type[Data2Vec2ForImageClassification]) -> None:
    config = CONFIGS["image" if kind is Data2Vec2ForImageClassification else "audio"]
    described = transformers_config(config, torch.float32)
    described.num_labels = 3
    model, inputs, labels = kind(described), batch(config), torch.tensor([0, 1, 2, 0])
    output = model(**given(model, inputs), labels=labels)
    assert output.logits.shape == (4, 3)
    assert torch.allclose(output.loss, functional.cross_entropy(output.logits, labels))
    output.loss.backward()
    assert model.data2vec2.encoder.blocks[0].mlp.up.weight.grad.abs().max() > 0


@pytest.mark.parametrize("classes", [1, 3])
def test_text_classifier_learns_classes_or_a_number(classes: int) -> None:
    described = transformers_config(CONFIGS["text"], torch.float32)
    described.num_labels = classes
    model, inputs = Data2Vec2ForSequenceClassification(described), batch(CONFIGS["text"])
    labels = torch.tensor([0, 0, 0, 0]) if classes > 1 else torch.tensor([0.5, 1.0, 2.0, 5.0])
    output = model(**given(model, inputs), labels=labels)
    expected = functional.cross_entropy(output.logits, labels) if classes > 1 else None
    expected = (output.logits[:, 0] - labels).square().mean() if expected is None else expected
    assert torch.allclose(output.loss, expected)
    assert torch.equal(model(**given(model, inputs), labels=labels, return_dict=False)[1], output.logits)


def test_ctc_loss_and_blanks_over_padding() -> None:
    """Each letter's loss by torch on each sample alone; padded frames are blank."""
    config, (head, _) = HEADS["audio"]
    model = Data2Vec2ForCTC(transformers_config(config, torch.float32, head))
    inputs, labels = batch(config), torch.tensor([[1, 2, 3], [4, 4, -100], [1, -100, -100], [2, 3, -100]])
    output = model(**given(model, inputs), labels=labels)
    assert inputs.padding is not None
    assert (output.logits.argmax(dim=-1)[inputs.padding] == 0).all()
    losses = []
    for row, frames in enumerate((~inputs.padding).sum(dim=1).tolist()):
        letters = labels[row][labels[row] >= 0]
        scores = output.logits[row, :frames].log_softmax(dim=-1)
        losses.append(functional.ctc_loss(scores, letters, torch.tensor(frames), torch.tensor(len(letters))))
    assert torch.allclose(output.loss, torch.stack(losses).mean(), atol=1e-5)


def test_head_export_loads_as_bare_encoder_too(tmp_path: Path) -> None:
    config, (head, weights) = HEADS["audio"]
    model, inputs = Model(random_encoder(config), head, weights), batch(config)
    write_model(model, torch.float32, tmp_path)
    described = AutoConfig.from_pretrained(tmp_path)
    assert (described.vocab_size, described.pad_token_id) == (NUM_OUTPUTS, 0)
    assert described.inputs_to_logits_ratio == 160
    bare_model, whole = AutoModel.from_pretrained(tmp_path), AutoModelForCTC.from_pretrained(tmp_path)
    with torch.no_grad():
        features = bare_model(**given(bare_model, inputs)).last_hidden_state
        hidden = whole(**given(whole, inputs), output_hidden_states=True).hidden_states[-1]
    assert torch.equal(features, hidden)
    assert features.shape[-1] == ENCODER.dim


def given(model: Data2Vec2Model, inputs: object) -> dict[str, torch.Tensor]:
    mask = inputs.attention_mask  # type: ignore[attr-defined]
    return {model.main_input_name: inputs.source} | ({} if mask is None else {"attention_mask": mask})  # type: ignore[attr-defined]
