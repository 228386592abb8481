"""fairseq's data2vec 2.0 models and ours: names and layouts of tensors. No torch at import."""

import re
from typing import TYPE_CHECKING

from model.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.output",
    "norm2": "norm2",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
}
_COMMON = {
    "extra_tokens": "extra_tokens",
    "alibi_scale": "alibi_scale",
    "context_encoder.norm.*": "norm.*",
    "context_encoder.blocks.#.BLOCK.*": "blocks.#.BLOCK.*",
}
_FRONTENDS = {
    "image": {
        "fixed_positional_encoder.positions": "positions",
        "local_encoder.proj.*": "local.*",
    },
    "audio": {
        "local_encoder.conv_layers.#.0.*": "local.layers.#.convolution.*",
        "local_encoder.conv_layers.#.2.1.*": "local.layers.#.norm.*",
        "project_features.1.*": "local.norm.*",
        "project_features.2.*": "local.projection.*",
        "relative_positional_encoder.#.0.*": "positions.#.*",  # they number from 1, we from 0
    },
    "text": {
        "local_encoder.embed_tokens.*": "local.tokens.*",
        "local_encoder.embed_positions.*": "local.positions.*",
        "local_encoder.layernorm_embedding.*": "local.norm.*",
    },
}
_DECODER = {
    "decoder.blocks.#.0.*": "layers.#.*",
    "decoder.proj.*": "projection.*",
    "decoder.proj.#.*": "projection.#.*",
}
_TABLE = {
    "blocks.#.BLOCK.*": "encoder.blocks.#.BLOCK.*",
    "recon_proj.*": "reconstruction.*",
    **{
        f"modality_encoders.{name.upper()}.{theirs}": f"frontends.{name}.{ours}"
        for name, rows in _FRONTENDS.items()
        for theirs, ours in (_COMMON | rows).items()
    },
    **{
        f"modality_encoders.{name.upper()}.{theirs}": f"decoders.{name}.{ours}"
        for name in _FRONTENDS
        for theirs, ours in _DECODER.items()
    },
}
"""fairseq's name -> ours. ``#`` is a number, ``*`` is weight or bias, ``BLOCK`` any row of ``_BLOCK``."""
_FROM_ONE = "relative_positional_encoder."


def our_name(fairseq_name: str) -> str:
    """Our name of a fairseq tensor of a student.

    Raises:
        ConfigError: for a tensor that our model does not have.
    """
    return _translate(fairseq_name, [(theirs, ours, -1 if _FROM_ONE in theirs else 0) for theirs, ours in _rows()])


def our_teacher_name(fairseq_name: str) -> str:
    """Our name of a tensor of the teacher (``_ema``): one of only blocks (text) names them from the list of blocks on.

    Raises:
        ConfigError: for a tensor that our model does not have.
    """
    return our_name(f"blocks.{fairseq_name}" if fairseq_name[0].isdigit() else fairseq_name)


def fairseq_name(our_name: str) -> str:
    """fairseq's name of one of our tensors.

    Raises:
        ConfigError: for a tensor that fairseq does not have.
    """
    return _translate(our_name, [(ours, theirs, 1 if _FROM_ONE in theirs else 0) for theirs, ours in _rows()])


def from_fairseq(name: str, tensor: "Tensor", num_heads: int) -> "Tensor":
    """A fairseq tensor (weight, gradient, average) in our layout; ``name`` is either name of it.

    fairseq packs the rows of qkv as (3, H, d), we as (H, 3, d), so that tensor parallelism can cut heads.
    """
    return _swap_heads(tensor, 3, num_heads) if ".qkv." in name else tensor


def to_fairseq(name: str, tensor: "Tensor", num_heads: int) -> "Tensor":
    """The inverse of ``from_fairseq``."""
    return _swap_heads(tensor, num_heads, 3) if ".qkv." in name else tensor


def _swap_heads(tensor: "Tensor", first: int, second: int) -> "Tensor":
    return tensor.unflatten(0, (first, second, -1)).transpose(0, 1).reshape(tensor.shape)


def _rows() -> list[tuple[str, str]]:
    rows = []
    for theirs, ours in _TABLE.items():
        for their_part, our_part in _BLOCK.items() if "BLOCK" in theirs else [("", "")]:
            rows.append((theirs.replace("BLOCK", their_part), ours.replace("BLOCK", our_part)))
    return rows


def _translate(name: str, rows: list[tuple[str, str, int]]) -> str:
    for source, target, shift in rows:
        pattern = re.escape(source).replace(r"\#", r"(?P<number>\d+)").replace(r"\*", "(?P<kind>weight|bias)")
        match = re.fullmatch(pattern, name)
        if match:
            found = match.groupdict()
            number = str(int(found["number"]) + shift) if "number" in found else ""
            return target.replace("#", number).replace("*", found.get("kind", ""))
    raise ConfigError(f"tensor {name!r} has no counterpart")
