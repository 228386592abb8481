"""data2vec 2.0: frontends, shared encoder, decoders; the student's and the teacher's forward pass."""

from typing import NamedTuple

from torch import Tensor, nn

from model.config import ModelConfig
from model.decoder import Decoder2d, fill_removed
from model.encoder import Encoder
from model.masking import Views
from model.modalities.base import Frontend
from model.modalities.image import ImageFrontend
from model.targets import TargetAccumulator


class StudentOutput(NamedTuple):
    """What the losses need of the student."""

    prediction: Tensor
    """(N, R, D) at the removed tokens, ascending."""
    encoded: Tensor
    """(N, ex + V, D), output of the last block, extra tokens first."""
    tokens: Tensor
    """(B, T, D) from the frontend, before positions and masking."""
    reconstruction: Tensor | None
    """(N, R, C * patch^2) predicted pixels at the removed tokens, if the objective has the term."""


class TeacherOutput(NamedTuple):
    """What the teacher gives."""

    targets: Tensor
    """(B, T, D) fp32."""
    encoded: Tensor
    """(B, ex + T, D), output of the last block."""


class Data2Vec(nn.Module):
    """Student, or teacher if built without decoders. Parameter names are those of the checkpoints."""

    def __init__(self, config: ModelConfig, *, with_decoders: bool = True) -> None:
        """Uninitialised; ``initialization.initialize`` draws the weights.

        Args:
            config: the model.
            with_decoders: False leaves out what only the student has.
        """
        super().__init__()
        self.config = config
        self.frontends = nn.ModuleDict({"image": ImageFrontend(config.image, config.encoder)})
        self.encoder = Encoder(config.encoder)
        if with_decoders:
            decoder = Decoder2d(config.image.decoder, config.encoder.dim, config.image.grid_size)
            self.decoders = nn.ModuleDict({"image": decoder})
            if config.loss.reconstruction_weight > 0:
                self.reconstruction = nn.Linear(config.encoder.dim, config.encoder.dim)

    def forward(self, source: Tensor, views: Views, noise: Tensor, modality: str = "image") -> StudentOutput:
        """The student: encode what each view keeps, predict the target at what it lacks.

        Args:
            source: (B, C, H, W).
            views: N = B * M rows.
            noise: (N, R, D) of standard deviation ``decoder.noise_std``, order of ``views.removed``.
            modality: whose frontend and decoder to use.
        """
        frontend = self._frontend(modality)
        tokens = frontend.tokens(source)
        context = frontend.contextualize(tokens, views)
        encoded = self.encoder(context.x, context.bias)
        full = fill_removed(encoded[:, frontend.num_extra_tokens :], noise, views)
        predicted = self.decoders[modality](self._add_positions(full, views, frontend))
        prediction = predicted.gather(1, views.removed.unsqueeze(-1).expand(-1, -1, predicted.shape[-1]))
        has_pixels = self.config.loss.reconstruction_weight > 0
        return StudentOutput(prediction, encoded, tokens, self.reconstruction(prediction) if has_pixels else None)

    def targets(self, source: Tensor, modality: str = "image") -> TeacherOutput:
        """The teacher: encode the whole sample, average its last K blocks.

        Args:
            source: (B, C, H, W).
            modality: whose frontend to use.
        """
        frontend = self._frontend(modality)
        context = frontend.contextualize(frontend.tokens(source), None)
        config = self.config.target
        accumulator = TargetAccumulator(config)
        first = len(self.encoder.blocks) - config.top_k
        number = 0

        def observe(output: Tensor, inner: Tensor) -> None:
            nonlocal number
            if number >= first:
                chosen = output if config.end_of_block else inner
                accumulator.add(chosen[:, frontend.num_extra_tokens :])
            number += 1

        encoded = self.encoder(context.x, context.bias, observe)
        return TeacherOutput(accumulator.finish(), encoded)

    def features(self, source: Tensor, modality: str = "image") -> Tensor:
        """Unmasked encoding for use after training: (B, C, H, W) -> (B, ex + T, D)."""
        frontend = self._frontend(modality)
        context = frontend.contextualize(frontend.tokens(source), None)
        return self.encoder(context.x, context.bias)

    def _frontend(self, modality: str) -> Frontend:
        frontend = self.frontends[modality]
        assert isinstance(frontend, Frontend)
        return frontend

    def _add_positions(self, full: Tensor, views: Views, frontend: Frontend) -> Tensor:
        where = self.config.image.decoder.add_positions
        if where == "none":
            return full
        positions = frontend.positions.to(full.dtype)
        return full + (positions * views.mask.unsqueeze(-1) if where == "masked" else positions)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Pixels by patch, channel last inside a patch: (B, C, H, W) -> (B, T, patch^2 * C)."""
    patches = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # B C h p w q
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
