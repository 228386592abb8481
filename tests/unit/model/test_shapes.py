"""Every tensor of the released configurations, by fairseq's names; parameter counts as arithmetic."""

import pytest
import torch

from deploy.export.fairseq import fairseq_name, our_name
from model.accounting import num_parameters
from model.data2vec import Data2Vec
from pretrain.recipes.registry import recipe
from tests.golden.tables import init_stats, state_dict_shapes

CONFIGS = {
    "image-base": "base_images_only_task",
    "image-large": "large_images_only_task",
    "image-huge16": "huge_images_only_task",
    "image-huge14": "huge_images14_only_task",
    "audio-base": "base_audio_only_task",
    "audio-large": "large_audio_only_task",
    "text-base": "base_text_only_task",
    "text-large": "large_text_only_task",
    "text-large-1m": "large_text_only_task",  # the same model, other loss and optimizer
}


@pytest.mark.parametrize("name", CONFIGS)
def test_state_dict_equals_the_references(name: str) -> None:
    expected, config = state_dict_shapes()[CONFIGS[name]], recipe(name).model
    with torch.device("meta"):
        model = Data2Vec(config)
    shapes = {fairseq_name(key): list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == expected["shapes"]
    assert {our_name(key) for key in shapes} == model.state_dict().keys()
    assert num_parameters(config) == expected["total"]
    assert num_parameters(config, with_decoders=False) == expected["encoder"]
    assert num_parameters(config) - num_parameters(config, with_decoders=False) == expected["decoder"]


@pytest.mark.parametrize(("name", "num_tensors"), [("image-base", 150), ("audio-base", 157), ("text-base", 144)])
def test_teacher_has_the_references_tensors(name: str, num_tensors: int) -> None:
    """All but the decoder; of audio also without what makes the tokens, of text only the blocks (facts section 5)."""
    config = recipe(name).model
    with torch.device("meta"):
        teacher = Data2Vec(config, role="teacher")
    names = {fairseq_name(key) for key in teacher.state_dict()}
    (modality,) = config.modalities
    theirs = init_stats()[CONFIGS[name]].keys()
    absent = {
        "image": (".decoder.",),
        "audio": (".decoder.", ".local_encoder.", ".project_features."),
        "text": ("modality_encoders.",),
    }[modality]
    assert names == {key for key in theirs if not any(part in key for part in absent)}
    assert len(names) == num_tensors
