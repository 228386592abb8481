"""Encoders to measure or to export: a checkpoint's student or teacher, and the same network before training."""

from pathlib import Path
from typing import Literal

from model.data2vec import Data2Vec
from model.initialization import initialize
from pretrain.checkpoint.progress import read_run_config
from pretrain.checkpoint.weights import read_weights
from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.evaluate.features import Encode

Source = Literal["student", "teacher"]
NOT_ENCODER = ("decoders.", "reconstruction.")
"""Parameters that only pretraining needs."""


def trained_encoder(checkpoint: Path, source: Source) -> Data2Vec:
    """The student or teacher of one step-... directory, without decoders, fp32, in eval mode.

    Raises:
        RunError: if the checkpoint is damaged or its weights are not those of its configuration.
    """
    encoder = Data2Vec(read_run_config(checkpoint).model, role="encoder")
    weights = read_weights(checkpoint, "student")
    if source == "teacher":  # where it has no weights of its own it reads what the student makes of the input
        weights |= read_weights(checkpoint, "teacher")
    kept = {name: weight for name, weight in weights.items() if not name.startswith(NOT_ENCODER)}
    trainable = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    state = encoder.state_dict()
    wrong = (trainable - kept.keys()) | {n for n in kept if n not in state or kept[n].shape != state[n].shape}
    if wrong:
        raise RunError(f"{checkpoint}: the {source}'s {min(wrong)} does not fit the model of its config.yaml")
    encoder.load_state_dict(state | kept)  # what is not trained (the position table) follows from the configuration
    return encoder.eval()


def untrained_encoder(config: RunConfig) -> Data2Vec:
    """The network as the run's first step found it: same configuration, same seed."""
    model = Data2Vec(config.model)
    initialize(model, config.training.seed)
    return model.eval()


def pooled(encoder: Data2Vec) -> Encode:
    """The last block's output on the unmasked image, averaged over the patches (facts section 4.1).

    Extra tokens are left out of the average: features from them are several points worse on small models.

    Raises:
        RunError: if the encoder has no images.
    """
    image = encoder.config.image
    if image is None:
        raise RunError(f"only image encoders can be judged yet; this one has {', '.join(encoder.config.modalities)}")
    num_extra_tokens = image.num_extra_tokens
    return lambda images: encoder.features(images, modality="image")[:, num_extra_tokens:].mean(dim=1)
