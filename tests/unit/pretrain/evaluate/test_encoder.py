import dataclasses

import torch

from model.data2vec import Data2Vec
from model.initialization import initialize
from pretrain.evaluate.encoder import pooled, untrained_encoder
from pretrain.recipes.tiny import image_tiny


@torch.no_grad()
def test_features_leave_out_the_extra_tokens() -> None:
    run = image_tiny()
    image = dataclasses.replace(run.model.image, num_extra_tokens=2)
    encoder = untrained_encoder(dataclasses.replace(run, model=dataclasses.replace(run.model, image=image)))
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    output = encoder.features(images)
    assert output.shape == (3, 2 + 49, 96)
    assert torch.equal(pooled(encoder)(images), output[:, 2:].mean(dim=1))


def test_untrained_encoder_is_where_the_run_started() -> None:
    """Same configuration, same seed: every parameter, to the last bit."""
    run = image_tiny()
    student = Data2Vec(run.model)
    initialize(student, run.training.seed)
    other = dataclasses.replace(run, training=dataclasses.replace(run.training, seed=run.training.seed + 1))
    encoder, another = untrained_encoder(run).state_dict(), untrained_encoder(other).state_dict()
    for name, parameter in student.named_parameters():
        assert torch.equal(encoder[name], parameter), name
    assert not torch.equal(encoder["encoder.blocks.0.mlp.up.weight"], another["encoder.blocks.0.mlp.up.weight"])
