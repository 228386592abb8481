"""One golden case: the reference's tensors in our names and layouts, and our model made from its configuration."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from deploy.export.fairseq import from_fairseq, model_config_from_fairseq, our_name
from model.config import ModelConfig
from model.data2vec import Data2Vec
from model.masking import Views, split_views


@dataclass
class Case:
    """A reference run: what went in, what came out."""

    name: str
    facts: dict[str, Any]
    """The case's JSON."""
    tensors: dict[str, Tensor]
    """The case's tensors, as stored."""
    config: ModelConfig

    @classmethod
    def load(cls, path: Path) -> "Case":
        """Read NAME.json and NAME.safetensors beside it."""
        facts = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(path.with_suffix(".safetensors"))
        num_rows = tensors["mask"].shape[0]
        config = model_config_from_fairseq(facts["config_resolved"]["model"], cls_rows=num_rows)
        return cls(f"{path.parent.name}/{path.stem}", facts, tensors, config)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """All tensors of ``PREFIX.NAME`` by our name, in our layout."""
        heads = self.config.encoder.num_heads
        found = {key[len(prefix) + 1 :]: value for key, value in self.tensors.items() if key.startswith(prefix + ".")}
        return {our_name(name): from_fairseq(name, value, heads) for name, value in found.items()}

    def student(self) -> Data2Vec:
        """Our student with the case's weights; every tensor must find its place."""
        student = Data2Vec(self.config)
        student.load_state_dict(self.group("param"))
        return student

    def teacher(self) -> Data2Vec:
        """Our teacher with the case's weights."""
        teacher = Data2Vec(self.config, with_decoders=False)
        # the reference's teacher drags the reconstruction's linear along, which nothing reads
        averages = self.group("ema").items()
        teacher.load_state_dict({name: value for name, value in averages if not name.startswith("reconstruction.")})
        return teacher.eval()

    @property
    def source(self) -> Tensor:
        """Images (B, C, H, W)."""
        return self.tensors["input.source"]

    def views(self) -> Views:
        """The case's masks, kept and removed tokens ascending."""
        mask = self.tensors["mask"].bool()
        num_kept = int((~mask[0]).sum())
        return split_views(mask.view(self.source.shape[0], -1, mask.shape[1]), num_kept)

    def noise(self, views: Views) -> Tensor:
        """The decoder's noise (N, R, D), in the order of ``views.removed``."""
        if "noise.flat" not in self.tensors:
            full = self.tensors["noise.full"]
            return full.gather(1, views.removed.unsqueeze(-1).expand(-1, -1, full.shape[-1]))
        flat, restore = self.tensors["noise.flat"], self.tensors["ids_restore"]
        num_kept = restore.shape[1] - flat.shape[1]
        index = restore.gather(1, views.removed) - num_kept  # place of a token in the reference's shuffled tail
        return flat.gather(1, index.unsqueeze(-1).expand(-1, -1, flat.shape[-1]))

    def ascending(self, x: Tensor) -> Tensor:
        """The reference's student tokens (N, ex + V, D), which stand in the order of its ids_keep, in ours."""
        num_extra = self.config.image.num_extra_tokens
        order = self.tensors["ids_keep"].argsort(dim=1).unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return torch.cat([x[:, :num_extra], x[:, num_extra:].gather(1, order)], dim=1)
