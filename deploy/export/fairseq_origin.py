"""What an imported step-... directory keeps of the fairseq file that it comes from, for the way back.

fairseq.json           name of the file, its configuration, the types of tensors that were not fp32
fairseq.safetensors    tensors without a place in our model, as stored there
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.errors import RunError

TEACHER, HEAD = "_ema.", "head."
"""Before the names of a teacher's tensors, and before our names of a head's."""
_DESCRIPTION, _TENSORS = "fairseq.json", "fairseq.safetensors"


class Origin(NamedTuple):
    """See above; all tensors go by fairseq's name of today."""

    name: str
    cfg: dict[str, Any]
    dtypes: dict[str, str]
    tensors: dict[str, Tensor]


def write_origin(checkpoint: Path, origin: Origin) -> list[Path]:
    """Write both files; returns them."""
    description, tensors = checkpoint / _DESCRIPTION, checkpoint / _TENSORS
    content = {"name": origin.name, "cfg": origin.cfg, "dtypes": origin.dtypes}
    description.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in origin.tensors.items()}, tensors)
    return [description, tensors]


def read_origin(checkpoint: Path) -> Origin | None:
    """The origin of a step-... directory, or None if it does not come from fairseq.

    Raises:
        RunError: if its files are damaged.
    """
    description = checkpoint / _DESCRIPTION
    if not description.exists():
        return None
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        return Origin(**content, tensors=load_file(checkpoint / _TENSORS))
    except Exception as error:  # safetensors raises its own error type
        raise RunError(f"{description}: damaged ({error}); import the file again") from error
