"""The sections of a run's configuration beside model and data: frozen dataclasses, no torch."""

from dataclasses import dataclass
from typing import Literal

from pretrain.errors import RunError


def _require(condition: bool, field_name: str, message: str) -> None:
    if not condition:
        raise RunError(f"{field_name}: {message}")


@dataclass(frozen=True, kw_only=True)
class OptimSection:
    """AdamW with decay on every parameter (as the reference really does) and clipping by the global norm."""

    lr: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates."""
    eps: float = 1e-8
    """Added to the root of the second moment before bias correction, as fairseq's Adam does."""
    weight_decay: float = 0.05
    """Decoupled weight decay of every parameter, biases and norms included."""
    clip_norm: float = 4.0
    """Largest global gradient norm; 0 turns clipping off."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optim.lr", f"must be above 0, got {self.lr}")
        _require(all(0 <= beta < 1 for beta in self.betas), "optim.betas", f"must lie in [0, 1), got {self.betas}")
        for name in ("eps", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            _require(value >= 0, f"optim.{name}", f"must not be negative, got {value}")


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """Learning rate: linear from 0, then cosine to 0 at training.max_steps."""

    warmup_steps: int = 50_040
    """Steps of the linear rise; the first step has learning rate 0 as in the reference."""

    def __post_init__(self) -> None:
        _require(self.warmup_steps >= 0, "schedule.warmup_steps", f"must not be negative, got {self.warmup_steps}")


@dataclass(frozen=True, kw_only=True)
class EmaSection:
    """Decay of the teacher: linear from start to end, then constant; 1 freezes the teacher."""

    start: float = 0.9998
    """Decay at the first step."""
    end: float = 0.99999
    """Decay from anneal_steps on."""
    anneal_steps: int = 100_000
    """Steps of the linear rise."""

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            _require(0.0 <= value <= 1.0, f"ema.{name}", f"must lie between 0 and 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class PrecisionSection:
    """Numbers that the networks compute with; master weights, moments and teacher shards stay fp32."""

    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of weights and activations."""


@dataclass(frozen=True, kw_only=True)
class ParallelSection:
    """How the run is laid out over the processes."""

    tp_size: int = 1
    """Processes that share one model, cut by heads and hidden units; the others are data parallel."""
    sequence_parallel: bool = False
    """Split hidden states between the blocks' linears over the tp_size processes, too: by rows (views of samples),
    not positions, so that lengths do not matter. Less memory for activations; a microbatch's rows must divide."""
    pp_size: int = 1
    """Stages of a pipeline that each model is cut into, by blocks; microbatches go through one after the other."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over data-parallel ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too."""
    teacher: Literal["auto", "resident", "gathered"] = "auto"
    """Weights the teacher computes with: whole on every rank, or gathered layer by layer; auto gathers at stage 3."""
    offload: Literal["none", "optimizer"] = "none"
    """What lives in host memory: nothing, or fp32 weights, moments and teacher shards, stepped on the CPU."""

    recompute: bool = False
    """Keep only the input of every block of the student and compute the rest again in the backward pass."""
    compile: Literal["none", "blocks"] = "none"
    """What torch.compile makes fewer and faster kernels of; the first steps wait for it, minutes on a CPU."""
    timeout_seconds: int = 1800
    """How long a process waits for others before the run ends with an error."""

    def __post_init__(self) -> None:
        for name in ("tp_size", "pp_size", "timeout_seconds"):
            _require(getattr(self, name) >= 1, f"parallel.{name}", f"must be at least 1, got {getattr(self, name)}")
        _require(
            self.offload == "none" or self.zero_stage > 0,
            "parallel.offload",
            f"{self.offload} needs sharded optimizer state, but parallel.zero_stage is 0; the nearest stage is 1",
        )
        _require(
            self.compile == "none" or self.zero_stage < 3,
            "parallel.compile",
            f"{self.compile} does not go with parallel.zero_stage 3, which brings the weights of each module while "
            "its block runs; the nearest stage is 2",
        )
        _require(
            self.compile == "none" or not self.sequence_parallel,
            "parallel.compile",
            f"{self.compile} does not go with parallel.sequence_parallel, whose collectives inside a block "
            "torch.compile cannot trace; set one of the two back",
        )
        _require(
            self.compile == "none" or not self.recompute or self.pp_size == 1,
            "parallel.compile",
            f"{self.compile} and parallel.recompute do not go together with stages: until a block runs again, other "
            "microbatches may have compiled a graph that it would take then; set one of the two back",
        )

    @property
    def gathers_teacher(self) -> bool:
        """Whether no rank holds the teacher's whole weights."""
        return self.teacher == "gathered" or (self.teacher == "auto" and self.zero_stage == 3)


@dataclass(frozen=True, kw_only=True)
class CheckpointSection:
    """When the run's state is written and how many copies are kept."""

    every_steps: int = 5_000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 3
    """Newest checkpoints that stay on disk."""

    def __post_init__(self) -> None:
        _require(self.every_steps >= 1, "checkpoint.every_steps", f"must be at least 1, got {self.every_steps}")
        _require(self.keep >= 1, "checkpoint.keep", f"must be at least 1, got {self.keep}")


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """Length, batch and seed."""

    max_steps: int = 375_300
    """Optimizer steps; the learning rate reaches 0 here."""
    global_batch_size: int = 256
    """Units of one optimizer step over all ranks: samples, of audio batches of data.audio.batch_seconds."""
    microbatch_size: int | None = None
    """Units of one forward pass of one rank; null: of audio one batch, else a rank's whole share at once."""
    seed: int = 1
    """Keys initial weights, sample order, augmentation, masks and noise."""

    def __post_init__(self) -> None:
        _require(self.max_steps >= 1, "training.max_steps", f"must be at least 1, got {self.max_steps}")
        _require(
            self.global_batch_size >= 1,
            "training.global_batch_size",
            f"must be at least 1, got {self.global_batch_size}",
        )
        size = self.microbatch_size
        _require(size is None or size >= 1, "training.microbatch_size", f"must be at least 1, got {size}")


@dataclass(frozen=True, kw_only=True)
class HealthSection:
    """When representations count as collapsed."""

    every_steps: int = 100
    """Steps between measurements of spread and effective rank."""
    after_steps: int = 5_000
    """First step at which an alarm may be raised."""
    min_target_spread: float = 0.1
    """Alarm below this mean per-channel standard deviation of the targets."""
    min_prediction_spread: float = 0.01
    """Alarm below this mean per-channel standard deviation of the predictions."""
    min_student_spread: float = 0.01
    """Alarm below this mean per-channel standard deviation of the student's features: 0.6 to 1 in healthy tiny runs."""
    min_effective_rank: float = 1.5
    """Alarm below this effective rank of frontend, student or teacher features."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """Warn, or save a checkpoint and stop with an error."""


@dataclass(frozen=True, kw_only=True)
class LoggingSection:
    """What is written while training; metrics.jsonl always is."""

    every_steps: int = 100
    """Steps between log lines."""
    tensorboard: bool = True
    """Write TensorBoard events into RUN/tensorboard."""
    wandb: bool = False
    """Log to Weights & Biases from rank 0; offline unless the user is logged in."""
    wandb_project: str = "data2vec-scale"
    """Project that the W&B run belongs to."""

    def __post_init__(self) -> None:
        _require(self.every_steps >= 1, "logging.every_steps", f"must be at least 1, got {self.every_steps}")
