"""The layout that goes with each large recipe, for given devices; ``d2v plan RECIPE`` shows it first.

A recipe's own section ``parallel`` has to start on any number of processes, one included, so it holds no degrees that
some number does not divide. No torch.
"""

from dataclasses import dataclass

from pretrain.sections import ParallelSection


@dataclass(frozen=True)
class Layout:
    """How a recipe's batch is spread over given devices."""

    cluster: str
    """Machines x devices x name, as ``d2v plan --cluster`` takes it."""
    parallel: ParallelSection
    microbatch_size: int


_SHARDED_GRADIENTS = ParallelSection(zero_stage=2, teacher="resident")
"""What the planner puts within a few percent of the fastest where a rank can hold the weights twice (the student's and
the teacher's): cutting the model by tensors or stages costs more than it gains."""

LAYOUTS = {
    "image-huge16": Layout("2x8xA100-80", _SHARDED_GRADIENTS, 8),  # the paper's GPUs and batches per GPU
    "image-huge14": Layout("4x8xA100-80", _SHARDED_GRADIENTS, 8),  # the same
    "image-1b": Layout("8x8xH100", _SHARDED_GRADIENTS, 8),
    "image-3b": Layout("16x8xH100", _SHARDED_GRADIENTS, 8),
    "image-7b": Layout("32x8xH100", ParallelSection(zero_stage=3, teacher="resident"), 8),  # 29 GB of weights otherwise
    "audio-1b": Layout("12x8xH100", _SHARDED_GRADIENTS, 1),
}
