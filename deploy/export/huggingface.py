"""A checkpoint's encoder as a folder for transformers, compared with our own model before it appears.

OUT/
    config.json               Data2Vec2Config, with the auto_map that trust_remote_code follows
    model.safetensors         our tensors under our names (modeling_data2vec2.py says what they are)
    modeling_data2vec2.py     the model, self-contained
    preprocessor_config.json  resize, crop and normalise as in evaluation
    README.md                 model card with the facts of the training
"""

import json
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import jinja2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

import deploy.export.registration  # noqa: F401  AutoModel below needs it
from data_pipelines.config import ImageSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.reader import Reader
from data_pipelines.transforms.image import image_bytes, load_image
from deploy.export import modeling_data2vec2
from deploy.export.folder import new_folder, refuse_occupied
from deploy.export.modeling_data2vec2 import Data2Vec2Config
from model.accounting import num_parameters
from model.config import ModelConfig
from model.data2vec import Data2Vec
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.store import locate
from pretrain.checkpoint.weights import read_run_config
from pretrain.config import RunConfig, to_yaml
from pretrain.errors import RunError
from pretrain.evaluate.encoder import Source, trained_encoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = 1e-6
"""Largest difference to our model, in fp32 arithmetic. It is 0: both do the same operations on the same numbers; the
allowance is for processors whose matrix products round by the alignment of memory."""
NUM_COMPARED = 4
"""Images that are put through both models."""


class Parity(NamedTuple):
    """How far an export is from our own model."""

    difference: float
    """Largest absolute difference of any output element; both compute in fp32 with the stored weights."""
    rounding: float
    """Largest absolute change of any output element from storing the weights in a smaller dtype; 0 for fp32."""
    images: str
    """What was put through both."""

    def __str__(self) -> str:
        rounding = f"; rounding the weights moves outputs by up to {self.rounding:.2g}" if self.rounding else ""
        return f"largest difference to our model: {self.difference} on {self.images}{rounding}"


@torch.no_grad()
def export(
    checkpoint: Path, out: Path, *, source: Source = "student", dtype: Literal["fp32", "bf16"] = "fp32"
) -> Parity:
    """Write ``out``; nothing appears there unless the reloaded export equals our model.

    Args:
        checkpoint: a run directory or one of its checkpoints, of any layout.
        out: must not exist, or be an empty folder.
        source: whose weights.
        dtype: of the stored weights.
    Raises:
        RunError: if the checkpoint cannot be used, ``out`` is occupied, or the outputs differ.
    """
    refuse_occupied(out)
    checkpoint = locate(checkpoint)
    config = read_run_config(checkpoint)
    if config.data.image is None or len(config.model.modalities) > 1:
        raise RunError(
            f"{checkpoint}: only image runs can be exported yet; this one has {', '.join(config.data.sources)}"
        )
    images, origin = _images(config)
    encoder = trained_encoder(checkpoint, source)
    exact = encoder.features(images, modality="image")
    round_parameters(encoder, DTYPES[dtype])
    ours = encoder.features(images, modality="image")
    with new_folder(out) as folder:
        write_model(encoder, DTYPES[dtype], folder)
        write_preprocessor(config.data.image, folder)
        rounding = (exact - ours).abs().max().item()
        parity = Parity(difference(ours, folder, images), rounding, origin)
        if not parity.difference <= TOLERANCE:
            raise RunError(f"{out}: not written: {parity}; at most {TOLERANCE} is right")
        write_card(folder, config, Manifest.read(checkpoint).step, source, dtype, parity)
    return parity


def round_parameters(encoder: Data2Vec, dtype: torch.dtype) -> None:
    """Give every parameter the value that it has when stored in ``dtype``; the model stays fp32."""
    for parameter in encoder.parameters():
        parameter.copy_(parameter.to(dtype))


def write_model(encoder: Data2Vec, dtype: torch.dtype, folder: Path) -> None:
    """Write config.json, model.safetensors (parameters in ``dtype``, tables in fp32) and the modeling file."""
    transformers_config(encoder.config, dtype).save_pretrained(folder)
    stored = {name: parameter.detach().to(dtype) for name, parameter in encoder.named_parameters()}
    save_file(encoder.state_dict() | stored, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(modeling_data2vec2.__file__, folder / "modeling_data2vec2.py")


def transformers_config(config: ModelConfig, dtype: torch.dtype) -> Data2Vec2Config:
    """Our configuration in transformers' words."""
    image, encoder = config.image, config.encoder
    assert image is not None
    alibi = None
    if image.alibi is not None:
        alibi = {name: getattr(image.alibi, name) for name in ("distance", "per_head", "per_layer")}
    return Data2Vec2Config(
        modality="image",
        hidden_size=encoder.dim,
        num_hidden_layers=image.prenet_depth + encoder.depth,
        num_prenet_layers=image.prenet_depth,
        num_attention_heads=encoder.num_heads,
        intermediate_size=int(encoder.dim * encoder.mlp_ratio),
        layer_norm_eps=encoder.norm_eps,
        initializer_range=encoder.init_std,
        num_extra_tokens=image.num_extra_tokens,
        alibi=alibi,
        image_size=image.image_size,
        patch_size=image.patch_size,
        num_channels=image.in_channels,
        architectures=["Data2Vec2Model"],
        auto_map={
            "AutoConfig": "modeling_data2vec2.Data2Vec2Config",
            "AutoModel": "modeling_data2vec2.Data2Vec2Model",
        },
        dtype=dtype,
    )


def write_preprocessor(config: ImageSourceConfig, folder: Path) -> None:
    """Write preprocessor_config.json: the evaluation transform as transformers' Bit processor does it."""
    content = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": config.size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": config.size, "width": config.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "do_convert_rgb": config.channels == 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def difference(ours: Tensor, folder: Path, images: Tensor) -> float:
    """Reload an export through AutoModel, in fp32, and compare its output on ``images`` with our model's."""
    reloaded = AutoModel.from_pretrained(folder, dtype=torch.float32)
    return (ours - reloaded(images).last_hidden_state).abs().max().item()


def _images(config: RunConfig) -> tuple[Tensor, str]:
    """A few of the run's own images if its data is at hand, else noise; and which of the two."""
    source, image = config.data.image, config.model.image
    assert source is not None and image is not None
    try:
        path = config.data.path_of("image")
        reader = Reader(path)
        samples = [reader.read(number) for number in range(min(NUM_COMPARED, len(reader)))]
        arrays = [load_image(image_bytes(sample.members), source) for sample in samples]
        return torch.from_numpy(np.stack(arrays)), f"{len(samples)} images of {path}"
    except DataError:
        shape = (NUM_COMPARED, image.in_channels, image.image_size, image.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)), f"{NUM_COMPARED} random images"


def write_card(folder: Path, config: RunConfig, step: int, source: str, dtype: str, parity: Parity) -> None:
    """Write README.md: what the encoder is, how to load it, how it was trained."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("deploy"), undefined=jinja2.StrictUndefined)
    card = environment.get_template("model_card.md").render(
        config=config,
        config_yaml=to_yaml(config),
        step=step,
        num_samples=step * config.training.global_batch_size,
        source=source,
        dtype=dtype,
        parity=parity,
        num_parameters=num_parameters(config.model, with_decoders=False),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
