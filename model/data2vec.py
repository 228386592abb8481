"""data2vec 2.0: frontends, shared encoder, decoders; the student's and the teacher's forward pass.

A model, or one stage of a pipeline: a stretch of the shared blocks, the first with the frontends, the last with the
decoders. Only hidden states, and the teacher's running target, go from stage to stage.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.bias import AttentionBias, LayerBias
from model.config import ModelConfig
from model.decoder import Decoder
from model.encoder import Block, Encoder, Reseed, one_stream
from model.linear import PLAIN, LinearFactory
from model.masking import Views, take
from model.modalities.audio import AudioFrontend
from model.modalities.base import Context, Frontend
from model.modalities.image import ImageFrontend
from model.modalities.text import TextFrontend
from model.outputs import LocalOutput, StageOutput, StudentOutput, TeacherOutput, TeacherState
from model.rows import RowLinear
from model.targets import TargetAccumulator

Role = Literal["student", "teacher", "encoder"]
"""The student has all parts; the teacher what each modality's ``teacher_scope`` says; an encoder is a student without
what only pretraining needs."""
FRONTENDS: dict[str, type[Any]] = {"image": ImageFrontend, "audio": AudioFrontend, "text": TextFrontend}
NOTHING_SKIPPED: frozenset[int] = frozenset()
FRONTEND, WHOLE, DECODER = -1, -2, -3
"""Streams of random numbers beside those of the shared blocks: of the frontend over the views, over whole samples,
and of the decoder."""


def as_is(hidden: Tensor) -> Tensor:
    """A hidden state that leaves the stage as it is."""
    return hidden


class Data2Vec(nn.Module):
    """Student, teacher or encoder. Parameter names are those of the checkpoints.

    Attributes:
        numbers: of the shared blocks that are here.
        scales: ALiBi's scales by modality, which this stage reads but an earlier one has.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        role: Role = "student",
        linears: LinearFactory = PLAIN,
        numbers: range | None = None,
    ) -> None:
        """Uninitialised; ``initialization.initialize`` draws the weights.

        Args:
            config: the model.
            role: which parts it has.
            linears: who makes the linears of the blocks and the embeddings: whole, or cut over ranks.
            numbers: the shared blocks of this stage; None for all.
        """
        super().__init__()
        self.config = config
        self._linears = linears
        self.numbers = range(config.encoder.depth) if numbers is None else numbers
        self.frontends = nn.ModuleDict()
        self.encoder = Encoder(config.encoder, linears, self.numbers)
        self.scales: dict[str, Tensor] = {}
        self._biases = {name: AttentionBias(side, config.encoder, linears) for name, side in config.modalities.items()}
        for name, modality in config.modalities.items() if self.is_first else ():
            scope = modality.teacher_scope if role == "teacher" else "frontend"
            if scope != "encoder":
                has_local = scope == "frontend"
                self.frontends[name] = FRONTENDS[name](modality, config.encoder, linears, has_local=has_local)
        if role == "student" and self.is_last:
            self.decoders = nn.ModuleDict()
            for name, modality in config.modalities.items():
                grid_size = config.image.grid_size if name == "image" and config.image else None
                self.decoders[name] = Decoder(modality.decoder, config.encoder.dim, grid_size, linears.ends)
            if config.image is not None and config.image.loss.reconstruction_weight > 0:
                self.reconstruction = RowLinear(config.encoder.dim, config.encoder.dim, linears.ends)

    @property
    def is_first(self) -> bool:
        """Whether the frontends are here."""
        return self.numbers.start == 0

    @property
    def is_last(self) -> bool:
        """Whether the decoders are here."""
        return self.numbers.stop == self.config.encoder.depth

    def scale_shape(self, modality: str) -> tuple[int, ...]:
        """Shape of a modality's scale of ALiBi on this rank."""
        shape = self._biases[modality].scale_shape
        assert shape is not None, f"{modality} has no ALiBi"
        return shape

    def views_here(self, views: Views) -> Views:
        """Those that frontends and decoders see here: this rank's, if several ranks share the model."""
        return views.of(self._linears.ends.here(len(views.mask)))

    def num_hidden_rows(self, num_rows: int) -> int:
        """Of ``num_rows`` rows, those whose hidden states go from stage to stage here."""
        return len(self._linears.hidden.here(num_rows))

    def join_rows(self, x: Tensor, num_rows: int) -> Tensor:
        """What is known of ``views_here`` (N here, ...), of all rows (N, ...): a collective."""
        return self._linears.ends.join(x, num_rows)

    def recompute_blocks(self) -> None:
        """Let every block keep its input only and run again in the backward pass."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = True

    def forward(
        self,
        source: Tensor,
        views: Views,
        noise: Tensor | None,
        *,
        modality: str,
        padding: Tensor | None = None,
        skipped: frozenset[int] = NOTHING_SKIPPED,
        reseed: Reseed = one_stream,
        hidden: Tensor | None = None,
        leave: Callable[[Tensor], Tensor] = as_is,
    ) -> StudentOutput | StageOutput:
        """The student: encode what each view keeps, predict the target at what it lacks.

        Args:
            source: raw input of B samples, see ``Frontend.tokens``.
            views: N = B * M rows.
            noise: (N, R, D) of standard deviation ``decoder.noise_std``, of ``views_here`` and in the order of their
                ``removed``; needed where the decoders are.
            modality: whose frontend and decoder to use.
            padding: (B, T) bool, True = padding; None if there is none.
            skipped: blocks that this step leaves out, by number, prenet first.
            reseed: called before every part that draws random numbers.
            hidden: what the stage before gave; None in the first.
            leave: applied to what goes to the next stage.
        Returns:
            StudentOutput from the stage with the decoders, StageOutput from others.
        """
        first = self.config.modalities[modality].prenet_depth
        tokens = None
        if hidden is None:
            reseed(FRONTEND)
            tokens = self._frontend(modality).tokens(source)
            hidden, bias = self._frontend(modality).contextualize(tokens, views, padding, skipped)
        else:
            bias = self._bias(modality, views.mask.shape[1], views, padding, hidden.device)
        shared = frozenset(number - first for number in skipped)
        encoded = self.encoder(hidden, bias, skipped=shared, reseed=reseed)
        if not self.is_last:
            return StageOutput(leave(encoded), None if tokens is None else tokens.detach())
        assert noise is not None
        encoded, here = self._linears.out_of_blocks(encoded), self.views_here(views)
        prediction, reconstruction = self._predict(encoded, here, noise, modality, reseed)
        whole = None if tokens is None else self._whole_context(tokens, modality, padding, skipped, reseed)
        return StudentOutput(here, prediction, encoded, tokens, whole, reconstruction)

    @torch.no_grad()
    def local_output(
        self,
        source: Tensor,
        *,
        modality: str,
        padding: Tensor | None = None,
        skipped: frozenset[int] = NOTHING_SKIPPED,
        reseed: Reseed = one_stream,
    ) -> LocalOutput:
        """The student's part of the teacher's input, as ``forward`` gives it: for a teacher that runs before."""
        reseed(FRONTEND)
        tokens = self._frontend(modality).tokens(source)
        return LocalOutput(tokens, self._whole_context(tokens, modality, padding, skipped, reseed))

    def targets(
        self,
        source: Tensor,
        local: StudentOutput | LocalOutput | None = None,
        *,
        modality: str,
        padding: Tensor | None = None,
    ) -> TeacherOutput:
        """The teacher: encode the whole samples, average its last K blocks.

        Args:
            source: raw input of B samples.
            local: what the student made of the same samples; needed unless ``teacher_scope`` is the whole frontend.
            modality: of the samples.
            padding: (B, T) bool, True = padding; None if there is none.
        """
        state, bias = self.teacher_start(source, local, modality=modality, padding=padding)
        return self.teacher_end(self.teacher_stage(state, bias, modality=modality), modality=modality)

    @torch.no_grad()
    def teacher_start(
        self,
        source: Tensor,
        local: StudentOutput | LocalOutput | None,
        *,
        modality: str,
        padding: Tensor | None,
    ) -> tuple[TeacherState, LayerBias]:
        """Input of the first stage and its attention bias; arguments as of ``targets``."""
        scope = self.config.modalities[modality].teacher_scope
        dtype = next(self.encoder.parameters()).dtype
        if scope == "encoder":
            assert local is not None and local.context is not None
            return TeacherState(local.context.x.to(dtype), None), local.context.bias
        if scope == "context":
            assert local is not None and local.tokens is not None
            tokens = local.tokens.detach().to(dtype)
        else:
            tokens = self._frontend(modality).tokens(source)
        context = self._frontend(modality).contextualize(tokens, None, padding)
        return TeacherState(context.x, None), context.bias

    @torch.no_grad()
    def teacher_stage(self, state: TeacherState, bias: LayerBias, *, modality: str) -> TeacherState:
        """Run the blocks that are here, and add those to the target that it averages."""
        side = self.config.modalities[modality]
        accumulator = TargetAccumulator(side.target, state.total)
        numbers = iter(self.numbers)

        def observe(output: Tensor, inner: Tensor) -> None:
            if next(numbers) >= self.first_averaged(modality):
                chosen = output if side.target.end_of_block else inner
                accumulator.add(chosen[:, side.num_extra_tokens :])

        hidden = self.encoder(state.hidden, bias, observe=observe)
        return TeacherState(hidden, accumulator.total)

    @torch.no_grad()
    def teacher_end(self, state: TeacherState, *, modality: str) -> TeacherOutput:
        """What the last stage's state means."""
        accumulator = TargetAccumulator(self.config.modalities[modality].target, state.total)
        return TeacherOutput(accumulator.finish(), state.hidden)

    def teacher_bias(self, modality: str, num_tokens: int, padding: Tensor | None, device: torch.device) -> LayerBias:
        """Attention bias of a stage without frontends, over whole samples."""
        return self._bias(modality, num_tokens, None, padding, device)

    def first_averaged(self, modality: str) -> int:
        """Number of the first block of the target."""
        return self.config.encoder.depth - self.config.modalities[modality].target.top_k

    def features(self, source: Tensor, *, modality: str, padding: Tensor | None = None) -> Tensor:
        """Unmasked encoding for use after training: raw input of B samples -> (B, ex + T, D)."""
        frontend = self._frontend(modality)
        context = frontend.contextualize(frontend.tokens(source), None, padding)
        return self.encoder(context.x, context.bias)

    def _frontend(self, modality: str) -> Frontend:
        frontend = self.frontends[modality]
        assert isinstance(frontend, Frontend)
        return frontend

    def _bias(
        self, modality: str, num_tokens: int, views: Views | None, padding: Tensor | None, device: torch.device
    ) -> LayerBias:
        """Of the shared blocks by number, in a stage without frontends."""
        bias = self._biases[modality](self.scales.get(modality), num_tokens, views, padding, device)
        prenet = self.config.modalities[modality].prenet_depth
        return lambda number: bias(prenet + number)

    def _predict(
        self, encoded: Tensor, views: Views, noise: Tensor, modality: str, reseed: Reseed
    ) -> tuple[Tensor, Tensor | None]:
        """Predictions at the removed tokens, and of their pixels if the objective asks for them."""
        side, decoder = self.config.modalities[modality], self.decoders[modality]
        assert isinstance(decoder, Decoder)
        reseed(DECODER)
        full = decoder.fill(encoded[:, side.num_extra_tokens :], noise, views)
        prediction = take(decoder(decoder.add_positions(full, views)), views.removed)
        return prediction, self.reconstruction(prediction) if side.loss.reconstruction_weight > 0 else None

    def _whole_context(
        self, tokens: Tensor, modality: str, padding: Tensor | None, skipped: frozenset[int], reseed: Reseed
    ) -> Context | None:
        """Input of the shared blocks for whole samples, if that is where the teacher begins."""
        if self.config.modalities[modality].teacher_scope != "encoder":
            return None
        reseed(WHOLE)
        with torch.no_grad():
            return self._frontend(modality).contextualize(tokens.detach(), None, padding, skipped)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Pixels by patch, channel last inside a patch: (B, C, H, W) -> (B, T, patch^2 * C)."""
    patches = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # B C h p w q
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
