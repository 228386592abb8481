"""What the network itself sends: sums of tensor parallelism, rows that its ranks share, hidden states. No torch."""

import dataclasses
import functools
from collections.abc import Iterator
from functools import partial

from deploy.plan.collective import Collective, Kind, When
from deploy.plan.engine import SIZES, Dtype
from deploy.plan.rank import Rank, used_by
from deploy.plan.shapes import Microbatch
from model.config import AudioConfig, ModelConfig, TextConfig
from model.inventory import Parameter


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Makes collectives of the tensor-parallel ranks for the microbatches of one modality."""

    dtype: Dtype
    number: int
    """Microbatches."""

    def __call__(
        self, what: str, when: When, calls: int, numel: int, kind: Kind = "all_reduce", dtype: Dtype | None = None
    ) -> Collective:
        """``calls`` of ``numel`` elements each in every microbatch."""
        dtype = dtype or self.dtype
        num_bytes, count = SIZES[dtype] * self.number * calls * numel, self.number * calls
        return Collective(what=what, kind=kind, group="tp", dtype=dtype, num_bytes=num_bytes, count=count, when=when)


def tensor_traffic(rank: Rank) -> Iterator[Collective]:
    """Everything that the ranks of one model say to each other."""
    for one in rank.microbatches:
        say = _Tensor(rank.dtype, one.number)
        yield from _of_blocks(rank, one, say)
        yield from _of_ends(rank, one, say)


def _of_blocks(rank: Rank, one: Microbatch, say: _Tensor) -> Iterator[Collective]:
    """A sum after attention and one after the MLP of every block, and as many for the gradients of their inputs.

    With sequence parallelism each sum is a gathering before and a scattering after; the backward pass gathers the
    inputs once more, and adds up the gradients of the norms.
    """
    side = rank.config.model.modalities[one.modality]
    prenet, shared = side.prenet_depth * rank.is_first, len(rank.numbers)
    student, whole, _ = _rows(one, rank.dim)
    before: When = "forward" if rank.grid.pp_size == 1 else "teacher"  # where the teacher gets what is the student's
    owns, blocks = side.teacher_scope != "encoder", prenet + shared
    yield say("teacher's blocks", "teacher", 2 * (shared + prenet * owns), whole)
    yield say("whole samples before the teacher", before, 2 * prenet * (not owns), whole)
    again = rank.parallel.recompute
    if rank.parallel.sequence_parallel:
        for what, when, gathers, scatters in (
            ("blocks", "forward", 2, 2),
            ("blocks' gradients", "backward", 4, 2),
            ("blocks computed again", "backward", 2 * again, 2 * again),
        ):
            yield say(what, when, gathers * blocks, student, kind="all_gather")  # type: ignore[arg-type]
            yield say(what, when, scatters * blocks, student, kind="reduce_scatter")  # type: ignore[arg-type]
        norm = 2 * rank.dim
        yield say("gradients of the norms", "backward", 2 * blocks, norm, dtype=rank.weight_dtype)
    else:
        yield say("blocks", "forward", 2 * blocks, student)
        yield say("blocks' gradients", "backward", 2 * blocks, student)
        yield say("blocks computed again", "backward", 2 * blocks * again, student)
    if side.alibi is not None and not side.alibi.per_head:  # a scale that all ranks have whole
        layers = side.prenet_depth + rank.depth if side.alibi.per_layer else 1
        dtype = rank.weight_dtype if rank.is_first else "fp32"
        yield say("gradient of ALiBi's scale", "backward", 1, layers, dtype=dtype)


def _of_ends(rank: Rank, one: Microbatch, say: _Tensor) -> Iterator[Collective]:
    """Frontends and decoders: each rank has some of the rows, so that their weights' gradients are added up."""
    side = rank.config.model.modalities[one.modality]
    student, _, tokens = _rows(one, rank.dim)
    joins = not rank.parallel.sequence_parallel
    if rank.is_first:
        again = side.teacher_scope == "frontend" or rank.grid.pp_size > 1
        if isinstance(side, TextConfig):
            yield say("embedded tokens", "forward", 1, tokens)
            yield say("teacher's embedded tokens", "teacher", int(again), tokens)
        if isinstance(side, AudioConfig):
            yield say("recordings' tokens", "forward", 1, tokens, kind="all_gather")
            yield say("teacher's recordings' tokens", "teacher", int(again), tokens, kind="all_gather")
        yield say("tokens' gradients", "backward", 1, tokens)
        yield say("rows that enter the blocks", "forward", int(joins), student, kind="all_gather")
    if rank.is_last:
        yield say("gradients of rows that left the blocks", "backward", int(joins), student, kind="all_gather")
    numel, num_modules = _serving_rows(rank.config.model, rank.numbers, rank.grid.tp_size, one.modality)
    whole = say("gradients of frontends and decoders", "backward", 1, numel, dtype=rank.weight_dtype)
    yield dataclasses.replace(whole, count=one.number * num_modules)


@functools.cache  # of the same stage for every microbatch size and option
def _serving_rows(model: ModelConfig, numbers: range, tp_size: int, modality: str) -> tuple[int, int]:
    """Elements of what is whole on every rank and used for its rows only, and in how many modules they are."""
    side = model.modalities[modality]
    served = [parameter for parameter in used_by(model, numbers, tp_size, modality) if _serves_rows(parameter, side)]
    modules = {parameter.name.rpartition(".")[0] for parameter in served}
    return sum(parameter.numel for parameter in served), len(modules)


def _serves_rows(parameter: Parameter, side: object) -> bool:
    """Whether a parameter is whole on every rank and used for this rank's rows only."""
    part, _, rest = parameter.name.partition(".")
    inner = rest.partition(".")[2]
    if part == "frontends":
        return inner.startswith(("extra_tokens", "norm.", "positions.")) or (
            isinstance(side, AudioConfig) and inner.startswith("local.")
        )
    return part in ("decoders", "reconstruction")


def stage_traffic(rank: Rank) -> Iterator[Collective]:
    """Hidden states go on and their gradients come back; so do the teacher's, with the target that it averages."""
    for one in rank.microbatches:
        student, whole, tokens = _rows(one, rank.dim)
        if rank.parallel.sequence_parallel:
            student //= rank.grid.tp_size
        first_averaged = rank.depth - rank.config.model.modalities[one.modality].target.top_k
        size = SIZES[rank.dtype] * one.number
        passing = partial(Collective, group="pp", dtype=rank.dtype, count=one.number)
        total = partial(
            Collective,
            what="running targets",
            group="pp",
            dtype="fp32",
            num_bytes=SIZES["fp32"] * tokens * one.number,
            count=one.number,
            when="teacher",
        )
        if not rank.is_last:
            yield passing(what="teacher's hidden states", kind="send", num_bytes=size * whole, when="teacher")
            yield passing(what="hidden states", kind="send", num_bytes=size * student, when="forward")
            yield passing(what="their gradients", kind="receive", num_bytes=size * student, when="backward")
            if first_averaged < rank.numbers.stop:
                yield total(kind="send")
        if not rank.is_first:
            yield passing(what="teacher's hidden states", kind="receive", num_bytes=size * whole, when="teacher")
            yield passing(what="hidden states", kind="receive", num_bytes=size * student, when="forward")
            yield passing(what="their gradients", kind="send", num_bytes=size * student, when="backward")
            if first_averaged < rank.numbers.start:
                yield total(kind="receive")
    yield from _ties(rank)


def _ties(rank: Rank) -> Iterator[Collective]:
    """ALiBi's scales: the first stage's go to all, the gradients of the others come back."""
    scales = Collective(
        what="ALiBi's scales", kind="broadcast", group="pp", dtype="fp32", num_bytes=0, count=1, when="forward"
    )
    student, teacher = scale_numels(rank)
    yield dataclasses.replace(scales, num_bytes=SIZES["fp32"] * (student + teacher))
    yield dataclasses.replace(
        scales, what="their gradients", kind="reduce", num_bytes=SIZES["fp32"] * student, when="backward"
    )


def scale_numels(rank: Rank) -> tuple[int, int]:
    """Elements of ALiBi's scales that every stage reads: the student's, and those that the teacher has of its own."""
    student = teacher = 0
    for side in rank.config.model.modalities.values():
        if side.alibi is not None:
            layers = side.prenet_depth + rank.depth if side.alibi.per_layer else 1
            heads = rank.config.model.encoder.num_heads // rank.grid.tp_size if side.alibi.per_head else 1
            student += layers * heads
            teacher += layers * heads * (side.teacher_scope != "encoder")
    return student, teacher


def _rows(one: Microbatch, dim: int) -> tuple[int, int, int]:
    """Elements of the hidden states of the student (N, ex + V, D) and the teacher (B, ex + T, D), and of (B, T, D)."""
    samples = round(one.samples)
    student, whole = round(one.rows) * (one.extra + one.kept), samples * (one.extra + one.tokens)
    return dim * student, dim * whole, dim * samples * one.tokens
