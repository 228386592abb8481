"""data2vec 2.0: frontends, shared encoder, decoders; the student's and the teacher's forward pass."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.decoder import Decoder
from model.encoder import Encoder
from model.linear import PLAIN, LinearFactory
from model.masking import Views, take
from model.modalities.audio import AudioFrontend
from model.modalities.base import Context, Frontend
from model.modalities.image import ImageFrontend
from model.modalities.text import TextFrontend
from model.targets import TargetAccumulator

Role = Literal["student", "teacher", "encoder"]
"""The student has all parts; the teacher what each modality's ``teacher_scope`` says; an encoder is a student without
what only pretraining needs."""
FRONTENDS: dict[str, type[Any]] = {"image": ImageFrontend, "audio": AudioFrontend, "text": TextFrontend}
NOTHING_SKIPPED: frozenset[int] = frozenset()


class StudentOutput(NamedTuple):
    """What the losses and the teacher need of the student."""

    prediction: Tensor
    """(N, R, D) at the removed tokens, ascending."""
    encoded: Tensor
    """(N, ex + V, D), output of the last block, extra tokens first."""
    tokens: Tensor
    """(B, T, D) from the frontend, before positions and masking."""
    context: Context | None
    """Input of the shared blocks for the whole samples, without gradient, if the teacher begins there."""
    reconstruction: Tensor | None
    """(N, R, C * patch^2) predicted pixels at the removed tokens, if the objective has the term."""


class TeacherOutput(NamedTuple):
    """What the teacher gives."""

    targets: Tensor
    """(B, T, D) fp32."""
    encoded: Tensor
    """(B, ex + T, D), output of the last block."""


class Data2Vec(nn.Module):
    """Student, teacher or encoder. Parameter names are those of the checkpoints."""

    def __init__(self, config: ModelConfig, *, role: Role = "student", linears: LinearFactory = PLAIN) -> None:
        """Uninitialised; ``initialization.initialize`` draws the weights.

        Args:
            config: the model.
            role: which parts it has.
            linears: who makes the linears of the blocks and the embeddings: whole, or cut over ranks.
        """
        super().__init__()
        self.config = config
        self.frontends = nn.ModuleDict()
        self.encoder = Encoder(config.encoder, linears)
        for name, modality in config.modalities.items():
            scope = modality.teacher_scope if role == "teacher" else "frontend"
            if scope != "encoder":
                has_local = scope == "frontend"
                self.frontends[name] = FRONTENDS[name](modality, config.encoder, linears, has_local=has_local)
        if role == "student":
            self.decoders = nn.ModuleDict()
            for name, modality in config.modalities.items():
                grid_size = config.image.grid_size if name == "image" and config.image else None
                self.decoders[name] = Decoder(modality.decoder, config.encoder.dim, grid_size)
            if config.image is not None and config.image.loss.reconstruction_weight > 0:
                self.reconstruction = nn.Linear(config.encoder.dim, config.encoder.dim)

    def forward(
        self,
        source: Tensor,
        views: Views,
        noise: Tensor,
        *,
        modality: str,
        padding: Tensor | None = None,
        skipped: frozenset[int] = NOTHING_SKIPPED,
    ) -> StudentOutput:
        """The student: encode what each view keeps, predict the target at what it lacks.

        Args:
            source: raw input of B samples, see ``Frontend.tokens``.
            views: N = B * M rows.
            noise: (N, R, D) of standard deviation ``decoder.noise_std``, order of ``views.removed``.
            modality: whose frontend and decoder to use.
            padding: (B, T) bool, True = padding; None if there is none.
            skipped: blocks that this step leaves out, by number, prenet first.
        """
        frontend = self._frontend(modality)
        decoder = self.decoders[modality]
        assert isinstance(decoder, Decoder)
        tokens = frontend.tokens(source)
        context = frontend.contextualize(tokens, views, padding, skipped)
        first = len(frontend.blocks)
        shared = frozenset(number - first for number in skipped)
        encoded = self.encoder(context.x, context.bias, skipped=shared)
        full = decoder.fill(encoded[:, frontend.num_extra_tokens :], noise, views)
        prediction = take(decoder(self._add_positions(full, views, modality)), views.removed)
        whole = None
        if self.config.modalities[modality].teacher_scope == "encoder":
            with torch.no_grad():
                whole = frontend.contextualize(tokens.detach(), None, padding, skipped)
        has_pixels = self.config.modalities[modality].loss.reconstruction_weight > 0
        return StudentOutput(
            prediction, encoded, tokens, whole, self.reconstruction(prediction) if has_pixels else None
        )

    @torch.no_grad()
    def targets(
        self, source: Tensor, student: StudentOutput | None = None, *, modality: str, padding: Tensor | None = None
    ) -> TeacherOutput:
        """The teacher: encode the whole samples, average its last K blocks.

        Args:
            source: raw input of B samples.
            student: its output for the same samples; needed unless ``teacher_scope`` is the whole frontend.
            modality: of the samples.
            padding: (B, T) bool, True = padding; None if there is none.
        """
        modality_config = self.config.modalities[modality]
        num_extra, config = modality_config.num_extra_tokens, modality_config.target
        context = self._teacher_context(source, student, modality, padding)
        accumulator = TargetAccumulator(config)
        first = len(self.encoder.blocks) - config.top_k
        number = 0

        def observe(output: Tensor, inner: Tensor) -> None:
            nonlocal number
            if number >= first:
                chosen = output if config.end_of_block else inner
                accumulator.add(chosen[:, num_extra:])
            number += 1

        encoded = self.encoder(context.x, context.bias, observe=observe)
        return TeacherOutput(accumulator.finish(), encoded)

    def features(self, source: Tensor, *, modality: str, padding: Tensor | None = None) -> Tensor:
        """Unmasked encoding for use after training: raw input of B samples -> (B, ex + T, D)."""
        frontend = self._frontend(modality)
        context = frontend.contextualize(frontend.tokens(source), None, padding)
        return self.encoder(context.x, context.bias)

    def _frontend(self, modality: str) -> Frontend:
        frontend = self.frontends[modality]
        assert isinstance(frontend, Frontend)
        return frontend

    def _teacher_context(
        self, source: Tensor, student: StudentOutput | None, modality: str, padding: Tensor | None
    ) -> Context:
        scope = self.config.modalities[modality].teacher_scope
        dtype = next(self.encoder.parameters()).dtype
        if scope == "encoder":
            assert student is not None and student.context is not None
            return Context(student.context.x.to(dtype), student.context.bias)
        if scope == "context":
            assert student is not None
            tokens = student.tokens.detach().to(dtype)
        else:
            tokens = self._frontend(modality).tokens(source)
        return self._frontend(modality).contextualize(tokens, None, padding)

    def _add_positions(self, full: Tensor, views: Views, modality: str) -> Tensor:
        where = self.config.modalities[modality].decoder.add_positions
        if where == "none":
            return full
        frontend = self.frontends[modality]
        assert isinstance(frontend, ImageFrontend)
        positions = frontend.positions.to(full.dtype)
        return full + (positions * views.mask.unsqueeze(-1) if where == "masked" else positions)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Pixels by patch, channel last inside a patch: (B, C, H, W) -> (B, T, patch^2 * C)."""
    patches = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # B C h p w q
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
