"""data2vec 2.0 on one microbatch: the only place where a batch meets the model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipelines.batches.base import Batch
from data_pipelines.order import stream_key
from model.accounting import train_flops_per_sample
from model.config import ModelConfig
from model.data2vec import Data2Vec, as_is
from model.losses import LossTerm, objective, term_counts
from model.masking import Views, split_views, take
from model.outputs import LocalOutput, StageOutput, StudentOutput, TeacherOutput
from model.sections import ModalityConfig
from pretrain.errors import RunError
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.zero import StudentEngine

_NOISE, _DROPOUT, _LAYER = 0x6E6F697365, 0x64726F70, 0x6C61796572
"""Set the streams of decoder noise, dropout and left-out blocks apart from those of order, augmentation and masks."""


class Observation(NamedTuple):
    """Detached tensors of one microbatch, for spread and health; each where its part of the model is."""

    prediction: Tensor | None = None
    """(N here, R, D) at the removed tokens."""
    target: Tensor | None = None
    """(N here, R, D)."""
    frontend: Tensor | None = None
    """(B, T, D) tokens before positions and masking."""
    student: Tensor | None = None
    """(N here, V, D) encoder output without extra tokens."""
    teacher: Tensor | None = None
    """(B, T, D) encoder output without extra tokens."""


@dataclass(frozen=True)
class Microbatch:
    """A batch on its device, and all that is drawn for it."""

    batch: Batch
    source: Tensor
    """Raw input in the precision of the networks."""
    views: Views
    noise_seeds: list[int]
    """One per sample."""
    skipped: frozenset[int]
    """Blocks that this step leaves out, prenet first."""
    dropout_key: int

    @property
    def modality(self) -> str:
        """The batch's."""
        return self.batch.modality

    def reseed(self, part: int) -> None:
        """Start the stream of dropout of one part of the network: the same whatever rank runs which parts."""
        torch.manual_seed(self.dropout_key + part)


class Data2VecTask:
    """Batch -> student and teacher -> loss terms."""

    def __init__(
        self,
        config: ModelConfig,
        engine: StudentEngine,
        teacher: ShardedTeacher,
        *,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        """Args: the model's config, its two networks, the device and precision of inputs, the run's seed."""
        self._config = config
        self._engine = engine
        self._teacher = teacher
        self._device = device
        self._dtype = dtype
        self._seed = seed
        self.modalities = tuple(config.modalities)

    def label(self, modality: str, name: str) -> str:
        """What a figure of one modality is called in a run: its plain name if there is only one."""
        return name if len(self.modalities) == 1 else f"{modality}_{name}"

    def check(self, batch: Batch) -> None:
        """See that the model knows every token, while they are in host memory: a GPU would abort without a name.

        Shards of others hold no tokenizer by which ``preflight`` could tell beforehand.

        Raises:
            RunError: if not.
        """
        text = self._config.text
        if batch.modality != "text" or text is None or batch.source.amax() < text.vocab_size:
            return
        row, place = (batch.source >= text.vocab_size).nonzero()[0].tolist()
        raise RunError(
            f"model.text.vocab_size: {text.vocab_size:,} does not hold token {int(batch.source[row, place]):,} of text "
            f"sample {int(batch.sample[row]):,}; set --model.text.vocab-size to that of the tokenizer of these shards"
        )

    def counts(self, batch: Batch) -> dict[str, int]:
        """What the terms' sums are divided by, by label; known on the host."""
        num_samples, num_views, num_tokens = batch.mask.shape
        counts = term_counts(num_samples * num_views, num_tokens - batch.num_kept)
        return {self.label(batch.modality, name): count for name, count in counts.items()}

    def flops(self, batch: Batch) -> int:
        """Mask-aware FLOPs of one microbatch (``train_flops_per_sample``)."""
        each = train_flops_per_sample(self._config, batch.modality, batch.length, batch.num_kept)
        return len(batch.source) * each

    def __call__(self, batch: Batch, position: int) -> tuple[dict[str, LossTerm], Callable[[], Observation]]:
        """Loss terms of one microbatch by label (sums over its own tokens and rows), where the whole model is.

        Args:
            batch: in host memory.
            position: as of ``microbatch``.
        Returns:
            the terms, and what makes the observation for whoever looks at it.
        """
        given = self.microbatch(batch, position)
        student = self.student(given)
        assert isinstance(student, StudentOutput)
        goal = self._teacher.ready().targets(
            given.source, student, modality=given.modality, padding=given.batch.padding
        )
        return self.terms(given, student, goal.targets), partial(self.observation, given, student, goal)

    def microbatch(self, batch: Batch, position: int) -> Microbatch:
        """A batch with all that is drawn for it, on the device.

        Args:
            batch: in host memory.
            position: of the modality's stream at the start of this step; keys decoder noise and left-out blocks, so
                that both are the same for every layout. Dropout is keyed by the microbatch, and so the same for
                layouts that cut the same microbatches.
        """
        noise_seeds = [stream_key(self._seed, _NOISE, position, sample) for sample in batch.sample.tolist()]
        key = stream_key(self._seed, _DROPOUT, batch.position)
        skipped = self._skipped(batch.modality, position)
        batch = batch.to(self._device, non_blocking=True)
        source = batch.source.to(self._dtype) if batch.source.is_floating_point() else batch.source
        return Microbatch(batch, source, split_views(batch.mask, batch.num_kept), noise_seeds, skipped, key)

    def student(
        self, given: Microbatch, hidden: Tensor | None = None, leave: Callable[[Tensor], Tensor] = as_is
    ) -> StudentOutput | StageOutput:
        """The student's part that is here; ``hidden`` and ``leave`` as of ``Data2Vec.forward``."""
        output: StudentOutput | StageOutput = self._engine(
            given.source,
            given.views,
            self._noise(given) if self.network.is_last else None,
            modality=given.modality,
            padding=given.batch.padding,
            skipped=given.skipped,
            reseed=given.reseed,
            hidden=hidden,
            leave=leave,
        )
        return output

    def local_output(self, given: Microbatch) -> LocalOutput | None:
        """What a teacher that runs before the student needs of it, if anything."""
        if self._side(given).teacher_scope == "frontend":
            return None
        return self.network.local_output(
            given.source,
            modality=given.modality,
            padding=given.batch.padding,
            skipped=given.skipped,
            reseed=given.reseed,
        )

    def terms(self, given: Microbatch, student: StudentOutput, targets: Tensor) -> dict[str, LossTerm]:
        """Loss terms by label."""
        terms = objective(self._side(given), student, targets, given.batch.source)
        return {self.label(given.modality, name): term for name, term in terms.items()}

    def observation(self, given: Microbatch, student: StudentOutput, goal: TeacherOutput) -> Observation:
        """What there is to see where the losses are."""
        num_extra = self._side(given).num_extra_tokens
        return Observation(
            prediction=student.prediction.detach(),
            target=take(student.views.spread(goal.targets), student.views.removed),
            frontend=None if student.tokens is None else student.tokens.detach(),
            student=student.encoded[:, num_extra:].detach(),
            teacher=goal.encoded[:, num_extra:],
        )

    def features(self, modality: str, seen: Observation) -> dict[str, Tensor | None]:
        """What health looks at in an observation, of all rows of a batch: a collective of ranks that share a model."""
        student = seen.student
        if student is not None and seen.teacher is not None:
            num_rows = len(seen.teacher) * self._config.modalities[modality].num_views
            student = self.network.join_rows(student, num_rows)
        return {"frontend": seen.frontend, "student": student, "teacher": seen.teacher}

    def shapes(self, given: Microbatch) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Of hidden states between stages: the student's (N, ex + V, D) and the teacher's (B, ex + T, D)."""
        side, dim = self._side(given), self._config.encoder.dim
        num_rows = self.network.num_hidden_rows(len(given.views.kept))
        student = (num_rows, side.num_extra_tokens + given.views.kept.shape[1], dim)
        return student, (len(given.source), side.num_extra_tokens + given.views.mask.shape[1], dim)

    @property
    def network(self) -> Data2Vec:
        """The student, or this stage of it."""
        assert isinstance(self._engine.module, Data2Vec)
        return self._engine.module

    def _side(self, given: Microbatch) -> ModalityConfig:
        return self._config.modalities[given.modality]

    def _skipped(self, modality: str, position: int) -> frozenset[int]:
        """Blocks that this step leaves out, prenet first; the same for all microbatches and ranks."""
        prenet = self._config.modalities[modality]
        shared = self._config.encoder
        chances = [prenet.prenet_layer_dropout] * prenet.prenet_depth + [shared.layer_dropout] * shared.depth
        return frozenset(
            number
            for number, chance in enumerate(chances)
            if chance > 0 and stream_key(self._seed, _LAYER, position, number) < chance * 2**63
        )

    def _noise(self, given: Microbatch) -> Tensor:
        """Noise (N here, R, D) for the decoder, a sample's from its own generator: any layout draws the same."""
        views = self.network.views_here(given.views)
        shape = (views.num_views, views.removed.shape[1], self._config.encoder.dim)
        generator = torch.Generator(self._device)
        parts = [torch.empty(0, *shape[1:], device=self._device, dtype=self._dtype)] + [
            torch.randn(shape, generator=generator.manual_seed(seed), device=self._device, dtype=self._dtype)
            for seed in given.noise_seeds[views.samples.start : views.samples.stop]
        ]
        return views.trimmed(torch.cat(parts)) * self._side(given).decoder.noise_std
