"""A step of a model that is cut into stages: first the teacher, forward only, then the student's 1F1B schedule."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from data_pipelines.batches.base import Batch
from model.data2vec import as_is
from model.outputs import StageOutput, StudentOutput, TeacherOutput
from pretrain.accumulation import Witness, total_of, weighted_shares
from pretrain.parallel.exchange import Exchange
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.pipeline import Pipeline
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.ties import TiedScales
from pretrain.parallel.watch import Watch
from pretrain.parallel.zero import StudentEngine
from pretrain.task import Data2VecTask, Microbatch, Observation


class PipelineSchedule:
    """One stage of the model is here: ``pretrain.accumulation.Schedule`` over all of them.

    The teacher goes first because its targets are needed in the last stage's forward pass, which in 1F1B is followed
    by a backward pass at once. The last stage keeps the step's targets. Where the teacher reads what the student's
    frontend makes, the first stage makes that twice.
    """

    def __init__(
        self,
        task: Data2VecTask,
        engine: StudentEngine,
        teacher: ShardedTeacher,
        groups: ProcessGroups,
        *,
        device: torch.device,
        dtype: torch.dtype,
        watch: Watch,
    ) -> None:
        """Args: what is done with a microbatch; this stage's networks; the stages; where and in which precision they
        compute; told of what goes on.
        """
        self._task = task
        self._engine = engine
        self._teacher = teacher
        self._groups = groups
        self._device = device
        self._watch = watch
        self._exchange = Exchange(groups, device, dtype, watch, before_backward=engine.expect_backward)
        self._pipeline = Pipeline(self._exchange, device)
        self._ties = TiedScales(task.network, teacher.module, groups, device, watch)

    def accumulate(
        self, batches: Sequence[Batch], positions: Mapping[str, int], totals: Mapping[str, float], witness: Witness
    ) -> None:
        """See ``Schedule``."""
        given = [self._task.microbatch(batch, positions[batch.modality]) for batch in batches]
        self._teacher.ready()
        self._ties.refresh()
        with self._watch.phase("running the teacher"):
            goals = [self._teach(number, one) for number, one in enumerate(given)]

        def forward(number: int, hidden: Tensor | None) -> Tensor:
            one, is_final = given[number], number == len(given) - 1
            leave = self._ties.inject if self._groups.pp_rank == 0 and is_final else as_is
            with self._watch.phase(f"computing microbatch {number}"):
                output = self._task.student(one, hidden, leave)
            if isinstance(output, StageOutput):
                if output.tokens is not None:
                    witness(one.modality, {}, partial(Observation, frontend=output.tokens))
                return output.hidden
            goal, goals[number] = goals[number], None
            return self._loss(one, output, goal, totals, witness)

        self._exchange.start([self._task.shapes(one)[0] for one in given])
        with self._watch.phase("running the student's pipeline"):
            self._pipeline.run(len(given), forward)
        self._ties.settle()

    def _loss(
        self,
        given: Microbatch,
        output: StudentOutput,
        goal: TeacherOutput | None,
        totals: Mapping[str, float],
        witness: Witness,
    ) -> Tensor:
        assert goal is not None
        shares = weighted_shares(self._task.terms(given, output, goal.targets), totals)
        witness(given.modality, shares, partial(self._task.observation, given, output, goal))
        return self._engine.scaled(total_of(shares))

    @torch.no_grad()
    def _teach(self, number: int, given: Microbatch) -> TeacherOutput | None:
        """This stage of the teacher; in the last one its targets."""
        teacher, modality, padding = self._teacher.ready(), given.modality, given.batch.padding
        if self._groups.pp_rank == 0:
            local = self._task.local_output(given)
            state, bias = teacher.teacher_start(given.source, local, modality=modality, padding=padding)
        else:
            _, hidden = self._task.shapes(given)
            num_tokens = given.views.mask.shape[1]
            total = (hidden[0], num_tokens, hidden[2])
            begun = teacher.first_averaged(modality) < teacher.numbers.start
            state = self._exchange.receive_teacher(number, hidden, total if begun else None)
            bias = teacher.teacher_bias(modality, num_tokens, padding, self._device)
        state = teacher.teacher_stage(state, bias, modality=modality)
        if self._groups.is_last_stage:
            return teacher.teacher_end(state, modality=modality)
        self._exchange.send_teacher(state, number)
        return None
