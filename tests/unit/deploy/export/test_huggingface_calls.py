"""What users of transformers do with its models works with the exported ones: fine-tune, save, call."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

from deploy.export.data2vec2.modeling import (
    Data2Vec2ForAudioClassification,
    Data2Vec2ForImageClassification,
    Data2Vec2ForSequenceClassification,
    Data2Vec2Model,
)
from deploy.export.huggingface import write_model
from deploy.export.trained import Model
from deploy.export.transformers_config import transformers_config
from tests.unit.deploy.export.encoders import CONFIGS, batch, random_encoder

CLASSES = {
    "image": Data2Vec2ForImageClassification,
    "audio": Data2Vec2ForAudioClassification,
    "text": Data2Vec2ForSequenceClassification,
}


def classifier(name: str, num_labels: int = 3, **options: object) -> nn.Module:
    torch.manual_seed(0)
    described = transformers_config(CONFIGS[name], torch.float32)
    described.num_labels = num_labels
    for option, value in options.items():
        setattr(described, option, value)
    return CLASSES[name](described)


def inputs_of(name: str) -> dict[str, Tensor]:
    (modality,) = CONFIGS[name].modalities
    return batch(CONFIGS[name]).given(modality)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_checkpointing_changes_no_gradient(name: str, reentrant: bool) -> None:
    model, labels, runs = classifier(name).train(), torch.tensor([0, 1, 2, 0]), []
    blocks = [*model.data2vec2.frontends[name].blocks, *model.data2vec2.encoder.blocks]
    for enabled in (False, True):
        if enabled:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        runs.append(0)
        hooks = [block.mlp.register_forward_hook(lambda *_: runs.append(runs.pop() + 1)) for block in blocks]
        model(**inputs_of(name), labels=labels).loss.backward()
        for hook in hooks:
            hook.remove()
        if not enabled:
            expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert runs == [len(blocks), 2 * len(blocks)]
    assert all(torch.equal(parameter.grad, expected[name]) for name, parameter in model.named_parameters())
    assert max(gradient.abs().max() for gradient in expected.values()) > 0


@pytest.mark.parametrize("name", CLASSES)
def test_loss_is_that_of_the_problem(name: str) -> None:
    """As transformers chooses it: by problem_type, else by the number of classes and the type of the labels."""
    inputs, several = inputs_of(name), torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]])
    model = classifier(name, problem_type="multi_label_classification")
    output = model(**inputs, labels=several)
    assert torch.equal(output.loss, functional.binary_cross_entropy_with_logits(output.logits, several))
    assert torch.equal(classifier(name)(**inputs, labels=several).loss, output.loss)
    output = classifier(name, problem_type="regression")(**inputs, labels=several)
    assert torch.equal(output.loss, functional.mse_loss(output.logits, several))
    output = classifier(name, num_labels=1)(**inputs, labels=torch.tensor([1, 2, 3, 4]))
    assert torch.allclose(output.loss, functional.mse_loss(output.logits[:, 0], torch.tensor([1.0, 2, 3, 4])))
    output = classifier(name)(**inputs, labels=torch.tensor([0, 1, 2, 0]))
    assert torch.equal(output.loss, functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 0])))


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_inputs_by_position_and_what_tokenizers_add(name: str) -> None:
    model, inputs = Data2Vec2Model(transformers_config(CONFIGS[name], torch.float32)).eval(), inputs_of(name)
    expected = model(**inputs).last_hidden_state
    assert torch.equal(model(*inputs.values()).last_hidden_state, expected)
    ignored = {"token_type_ids": torch.zeros(4, 4, dtype=torch.long), "output_attentions": False}
    assert torch.equal(model(**inputs, **ignored).last_hidden_state, expected)
    (first, *_) = inputs.values()
    for wrong in ({}, {"source": first, model.main_input_name: first}):
        with pytest.raises(ValueError, match=f"this is an encoder of {name}: give it {model.main_input_name} alone"):
            model(**wrong)
    with pytest.raises(ValueError, match="output_attentions: "):
        model(**inputs, output_attentions=True)
    head = classifier(name).eval()
    if name != "image":
        assert torch.equal(head(*inputs.values()).logits, head(**inputs).logits)
    for each in (model, head):
        each.config.return_dict = False
        assert isinstance(each(**inputs), tuple)
        assert not isinstance(each(**inputs, return_dict=True), tuple)


@pytest.mark.parametrize("name", CLASSES)
def test_embeddings_are_where_helpers_look(name: str) -> None:
    """Hooks on their output let gradients reach adapters of frozen models; a text's table can be resized."""
    model = classifier(name)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(**inputs_of(name)).logits.requires_grad
    if name == "text":
        before = model.get_input_embeddings().weight.clone()
        model.resize_token_embeddings(53)
        assert (
            model.config.vocab_size == 53
            and model.get_input_embeddings() is model.data2vec2.frontends.text.local.tokens
        )
        assert torch.equal(model.get_input_embeddings().weight[:50], before)


def test_saved_models_load_without_this_package(tmp_path: Path) -> None:
    """Loaded through it, changed, saved: the folder has the file that trust_remote_code follows, and saves it again."""
    (tmp_path / "first").mkdir()
    write_model(Model(random_encoder(CONFIGS["text"]), None, {}), torch.float32, tmp_path / "first")
    model = AutoModel.from_pretrained(tmp_path / "first")
    with torch.no_grad():
        model.encoder.blocks[0].mlp.up.bias += 0.25
    model.save_pretrained(tmp_path / "second")
    inputs = inputs_of("text")
    torch.save(inputs, tmp_path / "inputs.pt")
    (tmp_path / "script.py").write_text(
        f"""
import torch
from transformers import AutoModel
for before, after in (("second", "third"), ("third", None)):
    model = AutoModel.from_pretrained(f"{tmp_path}/{{before}}", trust_remote_code=True).eval()
    assert not type(model).__module__.startswith("deploy"), type(model)
    with torch.no_grad():
        torch.save(model(**torch.load("{tmp_path}/inputs.pt")).last_hidden_state, "{tmp_path}/output.pt")
    if after:
        model.save_pretrained(f"{tmp_path}/{{after}}")
""",
        encoding="utf-8",
    )
    environment = {"HF_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, tmp_path / "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "output.pt"), model(**inputs).last_hidden_state)
