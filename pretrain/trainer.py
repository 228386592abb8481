"""The training loop over parts that ``build`` has made."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.batches.base import Batch
from data_pipelines.mixture import Mixture
from model import ema
from pretrain import schedules
from pretrain.accumulation import Schedule
from pretrain.checkpoint.state import TrainState
from pretrain.errors import RunError
from pretrain.observe import health
from pretrain.observe.log import RunLog
from pretrain.observe.metrics import LossMeter, SpreadMeter, of_all_stages
from pretrain.observe.throughput import Throughput
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.teacher import ShardedTeacher
from pretrain.parallel.watch import Watch
from pretrain.parallel.zero import StudentEngine
from pretrain.preempt import StopRequest
from pretrain.sections import (
    CheckpointSection,
    EmaSection,
    HealthSection,
    LoggingSection,
    OptimSection,
    ScheduleSection,
    TrainingSection,
)
from pretrain.task import Data2VecTask, Observation

MAX_SKIPPED_IN_A_ROW = 3
"""Steps with a non-finite gradient after which a run gives up: the weights are whole, but the data or lr is not."""


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The parts of the configuration that the loop itself reads."""

    optim: OptimSection
    schedule: ScheduleSection
    ema: EmaSection
    training: TrainingSection
    checkpoint: CheckpointSection
    health: HealthSection
    logging: LoggingSection


class Trainer:
    """Runs steps until the last one, a stop request, or an error."""

    def __init__(
        self,
        *,
        sections: Sections,
        task: Data2VecTask,
        schedule: Schedule,
        engine: StudentEngine,
        teacher: ShardedTeacher,
        mixture: Mixture,
        groups: ProcessGroups,
        watch: Watch,
        log: RunLog,
        throughput: Throughput,
        stop: StopRequest,
        state: TrainState,
        save: Callable[[TrainState], Path],
        device: torch.device,
    ) -> None:
        """All parts are ready to run; ``state`` is where the run stands, ``save`` writes a checkpoint."""
        self._sections = sections
        self._task = task
        self._schedule = schedule
        self._engine = engine
        self._teacher = teacher
        self._mixture = mixture
        self._groups = groups
        self._watch = watch
        self._log = log
        self._throughput = throughput
        self._stop = stop
        self.state = state
        self._save = save
        self._meter = LossMeter(device)
        self._spread = SpreadMeter()
        self._seen: dict[str, Observation] = {}
        self._rejected: set[str] = set()
        self._skipped_in_a_row = 0
        self._lr = 0.0

    def train(self) -> Literal["done", "stopped"]:
        """Run to ``max_steps`` or to a stop request; the state is saved in both cases.

        Raises:
            RunError: when gradients stay non-finite, when representations collapse and the config says stop,
                or when a checkpoint cannot be written.
            DataError: when samples are unusable beyond the budget.
        """
        max_steps = self._sections.training.max_steps
        self._throughput.start(self._mixture.wait_seconds)
        while self.state.step < max_steps:
            batches, totals, stopping = self._fetch()
            if stopping:
                self._checkpoint()
                self._log.event(self.state.step, "stop", f"{self._stop.requested or 'another rank'}: saved, can resume")
                return "stopped"
            self._train_step(batches, totals)
            self._report()
            if self.state.step % self._sections.checkpoint.every_steps == 0 and not self._skipped_in_a_row:
                self._checkpoint()
        self._checkpoint()
        self._log.event(self.state.step, "done", f"{max_steps} steps")
        return "done"

    def fail(self, error: Exception) -> None:
        """Put the error that ends the run into its log."""
        self._log.event(self.state.step, "error", str(error))

    def close(self) -> None:
        """End the loader's workers, the log's sinks and the watch."""
        self._watch.close()
        self._mixture.close()
        self._log.close()

    def _fetch(self) -> tuple[list[Batch], dict[str, float], bool]:
        """The microbatches of one step, totals over all ranks, and whether any rank was told to stop.

        The totals are the counts of the loss terms and, under ``amount/...``, what the step processes. One small
        collective in host memory settles all of it: all ranks stop at the same step.
        """
        with self._watch.phase("waiting for its own batches"):
            batches = self._mixture.next_step()
        local: dict[str, float] = defaultdict(float)
        for batch in batches:
            self._task.check(batch)
            for name, count in self._task.counts(batch).items():
                local[name] += count
            for name, amount in self._amounts(batch).items():
                local[f"amount/{name}"] += amount
        mine = local.values() if self._groups.speaks else [0.0] * len(local)
        control = torch.tensor([float(self._stop.requested is not None), *mine], dtype=torch.float64)
        with self._watch.phase("waiting for all processes to have their batches"):
            dist.all_reduce(control, group=self._groups.control_group)
        stop, *summed = control.tolist()
        return batches, dict(zip(local, summed, strict=True)), stop > 0

    def _amounts(self, batch: Batch) -> dict[str, float]:
        """What throughput is counted in."""
        samples, tokens = batch.source.shape[0], batch.mask.shape[0] * batch.mask.shape[2]
        return {
            "flops": self._task.flops(batch),
            "samples": samples,
            "images": samples if batch.modality == "image" else 0,
            "audio_seconds": batch.seconds,
            "text_tokens": tokens if batch.modality == "text" else 0,
        }

    def _train_step(self, batches: list[Batch], totals: dict[str, float]) -> None:
        """Accumulate the microbatches, step the student, move the teacher."""
        sections, step = self._sections, self.state.step
        for batch in batches:
            self._note_rejected(batch)
        self._schedule.accumulate(batches, self.state.positions, totals, self._witness)
        lr = schedules.cosine_lr(
            step,
            peak=sections.optim.lr,
            warmup_steps=sections.schedule.warmup_steps,
            max_steps=sections.training.max_steps,
        )
        eps = schedules.uncorrected_eps(self._engine.adam_step, eps=sections.optim.eps, beta2=sections.optim.betas[1])
        with self._watch.phase("reducing gradients and stepping"):
            stepped = self._engine.step(lr=lr, eps=eps)
        self._meter.end_step(counted=stepped)
        if not stepped:
            self._spread, self._seen = SpreadMeter(), {}
        for modality, size in self._mixture.step_sizes.items():
            self.state.positions[modality] += size
        self._lr = lr
        if stepped:
            self.state.step += 1
            self._skipped_in_a_row = 0
            self._teacher.update(self._decay())
        else:
            self._skip()
        amounts = {name: value for name, value in totals.items() if name.startswith("amount/")}
        self._throughput.end_step({name.removeprefix("amount/"): value for name, value in amounts.items()})

    def _witness(self, modality: str, shares: dict[str, Tensor], observe: Callable[[], Observation]) -> None:
        """Take in what this stage sees of a microbatch."""
        for name, share in shares.items():
            self._meter.add(name, share)
        measures = self._measures_at(self.state.step + 1)
        if not (measures or self._logs_at(self.state.step + 1)):
            return
        seen = observe()
        for name, tensor in (("target_spread", seen.target), ("prediction_spread", seen.prediction)):
            if tensor is not None:
                self._spread.add(self._task.label(modality, name), tensor)
        if measures:
            self._seen[modality] = seen._replace(target=None, prediction=None)  # of which no more is read

    def _decay(self) -> float:
        """Decay after ``state.step`` updates."""
        section = self._sections.ema
        return ema.decay(self.state.step, section.start, section.end, section.anneal_steps)

    def _skip(self) -> None:
        self._skipped_in_a_row += 1
        message = f"gradient norm is not finite: step skipped ({self._skipped_in_a_row} in a row)"
        self._log.event(self.state.step, "alarm", message)
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RunError(
                f"step {self.state.step}: the gradient was not finite {MAX_SKIPPED_IN_A_ROW} times in a row; "
                "the weights are those of the last good step: look at the learning rate, the data, the precision"
            )

    def _logs_at(self, step: int) -> bool:
        return step % self._sections.logging.every_steps == 0 or step == self._sections.training.max_steps

    def _measures_at(self, step: int) -> bool:
        return step % self._sections.health.every_steps == 0

    def _report(self) -> None:
        step = self.state.step
        if self._skipped_in_a_row or not (self._logs_at(step) or self._measures_at(step)):
            return
        with self._watch.phase("bringing figures together"):
            has_losses, group = self._groups.is_last_stage, self._groups.stage_group
            measured = self._spread.read(group) if has_losses else {}
            losses = self._meter.read(group) if has_losses and self._logs_at(step) else {}
            features = self._features() if self._measures_at(step) else {}
            measured, losses, features = of_all_stages(self._groups, measured, losses, features)
        if self._logs_at(step):
            total = sum(losses.values())
            self._log.train(
                {
                    "step": step,
                    "loss": total,
                    **self._losses_of_modalities(losses),
                    **{f"loss_{name}": value for name, value in losses.items()},
                    "lr": self._lr,
                    "grad_norm": self._engine.gradient_norm(),
                    "ema_decay": self._decay(),
                    **measured,
                    **self._throughput.read(step, self._mixture.wait_seconds),
                }
            )
            if not math.isfinite(total):
                self._log.event(step, "alarm", f"the loss is {total}")
        if self._measures_at(step):
            self._check_health(features, measured)

    def _losses_of_modalities(self, losses: dict[str, float]) -> dict[str, float]:
        """The sum of each modality's terms, if there are several modalities."""
        if len(self._task.modalities) == 1:
            return {}
        return {
            f"loss_{modality}": sum(value for name, value in losses.items() if name.startswith(f"{modality}_"))
            for modality in self._task.modalities
        }

    def _features(self) -> dict[str, float]:
        """Effective rank and spread of what this stage has seen last of each modality, which is forgotten."""
        seen, self._seen = self._seen, {}
        return {
            self._task.label(modality, name): value
            for modality, one in seen.items()
            for name, value in health.figures(**self._task.features(modality, one)).items()
        }

    def _check_health(self, figures: dict[str, float], measured: dict[str, float]) -> None:
        self._log.health({"step": self.state.step, **figures})
        problems = health.alarms(self.state.step, self._sections.health, measured | figures)
        for problem in problems:
            self._log.event(self.state.step, "alarm", problem)
        stop = torch.tensor(float(bool(problems) and self._sections.health.on_collapse == "stop"))
        dist.all_reduce(stop, group=self._groups.control_group)
        if stop > 0:
            self._checkpoint()
            raise RunError(
                f"step {self.state.step}: {'; '.join(problems) or 'collapse on another rank'} "
                "(health.on_collapse is stop; the state is saved)"
            )

    def _note_rejected(self, batch: Batch) -> None:
        if not self._groups.speaks:  # ranks that share a model read the same samples
            return
        for reason in set(batch.rejected) - self._rejected:
            self._rejected.add(reason)
            self._log.quarantine(reason)
            self._log.event(self.state.step, "quarantine", reason)

    def _checkpoint(self) -> None:
        self._teacher.ready()  # a run ends with a checkpoint, and no collective may be in flight then
        if self.state.saved_step == self.state.step:
            return
        with self._watch.phase("writing a checkpoint"):
            path = self._save(self.state)
        self._log.event(self.state.step, "checkpoint", str(path))
