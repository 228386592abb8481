"""Padding does not change what a sample becomes, as far as the method allows it.

Text: not at all. Speech: not the feature encoder's frames; but the convolutional positions look at padded frames too
(facts section 1.2), so blocks are compared with positions that are blind.
"""

import pytest
import torch

from model.data2vec import Data2Vec
from model.modalities.audio import AudioFrontend
from tests.unit.model.inputs import inputs, shaken, tiny


def features(model: Data2Vec, modality: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Of the shorter sample: alone, and in a padded batch; and how many tokens it has."""
    given = inputs(model.config, modality, num_samples=2, padded=True).double()
    assert given.padding is not None
    num_tokens = int((~given.padding[1]).sum())
    length = 3 * given.source.shape[1] // 4
    alone = model.features(given.source[1:, :length], modality=modality)
    together = model.features(given.source, modality=modality, padding=given.padding)
    return alone[0], together[1], num_tokens


def blind(model: Data2Vec) -> Data2Vec:
    """Convolutional positions that see no frame: each one is the same constant everywhere."""
    frontend = model.frontends["audio"]
    assert isinstance(frontend, AudioFrontend)
    with torch.no_grad():
        for layer in frontend.positions:
            layer.weight.zero_()
    return model


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_a_padded_sample_has_the_features_of_the_unpadded_one(modality: str) -> None:
    model = shaken(tiny(modality)).eval()
    alone, together, num_tokens = features(blind(model) if modality == "audio" else model, modality)
    assert len(alone) == num_tokens < len(together)
    torch.testing.assert_close(together[:num_tokens], alone, rtol=0, atol=1e-6)


def test_frames_of_speech_do_not_see_padding_but_positions_do() -> None:
    model = shaken(tiny("audio")).eval()
    given = inputs(model.config, "audio", num_samples=2, padded=True).double()
    frontend, length = model.frontends["audio"], 3 * given.source.shape[1] // 4
    assert isinstance(frontend, AudioFrontend)
    alone, together = frontend.tokens(given.source[1:, :length])[0], frontend.tokens(given.source)[1]
    torch.testing.assert_close(together[: len(alone)], alone, rtol=0, atol=1e-12)
    alone, together, num_tokens = features(model, "audio")
    assert (together[:num_tokens] - alone).abs().max() > 1e-4
