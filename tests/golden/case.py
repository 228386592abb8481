"""One golden case: the reference's tensors in our names and layouts, and our model made from its configuration."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from deploy.export.fairseq import from_fairseq, our_name, our_teacher_name
from deploy.export.fairseq_config import model_config_from_fairseq
from model.config import AudioConfig, ModelConfig
from model.data2vec import Data2Vec
from model.masking import Views, split_views
from model.sections import ModalityConfig


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
        embedding = tensors.get("param.modality_encoders.TEXT.local_encoder.embed_tokens.weight")
        config = model_config_from_fairseq(
            facts["config_resolved"]["model"],
            cls_rows=tensors["mask"].shape[0],
            vocab_size=None if embedding is None else len(embedding),
        )
        return cls(f"{path.parent.name}/{path.stem}", facts, tensors, config)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """All tensors of ``PREFIX.NAME`` by our name, in our layout."""
        heads = self.config.encoder.num_heads
        found = {key[len(prefix) + 1 :]: value for key, value in self.tensors.items() if key.startswith(prefix + ".")}
        ours = our_teacher_name if prefix.startswith("ema") else our_name
        return {ours(name): from_fairseq(ours(name), value, heads) for name, value in found.items()}

    def student(self) -> Data2Vec:
        """Our student with the case's weights; every tensor must find its place."""
        student = Data2Vec(self.config)
        student.load_state_dict(self.group("param"))
        return student

    def teacher(self) -> Data2Vec:
        """Our teacher with the case's weights."""
        teacher = Data2Vec(self.config, role="teacher")
        # the reference's teacher drags the reconstruction's linear along, which nothing reads
        averages = self.group("ema").items()
        teacher.load_state_dict({name: value for name, value in averages if not name.startswith("reconstruction.")})
        return teacher.eval()

    @property
    def modality(self) -> str:
        """Of the case; it has one."""
        (name,) = self.config.modalities
        return name

    @property
    def side(self) -> ModalityConfig:
        """The configuration of its modality."""
        return self.config.modalities[self.modality]

    @property
    def source(self) -> Tensor:
        """Images (B, C, H, W), waveforms (B, L) or token numbers (B, T)."""
        return self.tensors["input.source"]

    @property
    def padding(self) -> Tensor | None:
        """Padded tokens (B, T); the reference's input says which waveform samples or text tokens are padding."""
        padding = self.tensors.get("input.padding_mask")
        if padding is None or not padding.bool().any():
            return None
        if not isinstance(self.side, AudioConfig):
            return padding.bool()
        lengths = [self.side.num_frames(int(row)) for row in (~padding.bool()).sum(dim=1)]
        return torch.arange(self.tensors["mask"].shape[1]) >= torch.tensor(lengths)[:, None]

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
        num_extra = self.side.num_extra_tokens
        order = self.tensors["ids_keep"].argsort(dim=1).unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return torch.cat([x[:, :num_extra], x[:, num_extra:].gather(1, order)], dim=1)
