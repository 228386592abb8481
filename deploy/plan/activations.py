"""Bytes that a step holds beside weights and their gradients, by what autograd keeps for the backward pass. No torch.

The counts are those of this network under torch 2.13, seen with saved-tensor hooks
(``tests/unit/deploy/plan/test_activations.py`` measures them anew).
"""

from dataclasses import dataclass

from deploy.plan.kept import Network, block, decoder, frontend, loss, target, teacher
from deploy.plan.shapes import Microbatch, microbatches
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid
from pretrain.parallel.stages import stages_of
from pretrain.work import typical_work


@dataclass(frozen=True)
class ActivationBytes:
    """What one rank of a stage holds at its fullest."""

    student: int
    """Kept by frontends and blocks for the backward pass, of all microbatches that are under way."""
    decoder: int
    """Kept by the decoder."""
    teacher: int
    """Most that its forward pass holds at once; with a pipeline it runs before the student."""
    loss: int
    """Targets, the losses' own copies, and the first gradients."""
    peak: int
    """Most that there is at once."""


def activation_bytes(config: RunConfig, grid: Grid, *, on_cpu: bool = False) -> list[ActivationBytes]:
    """Of every stage; of several modalities that which takes most.

    Args:
        config: the run.
        grid: its layout.
        on_cpu: attention in bf16 is not fused there, and dropout keeps its masks in the precision of the network.
    """
    network = Network(config, grid, on_cpu)
    stages = stages_of(config.model, typical_work(config), pp_size=grid.pp_size, tp_size=grid.tp_size)
    each = [_of_stages(network, one, stages) for one in microbatches(config, grid)]
    return [max(of_modalities, key=lambda held: held.peak) for of_modalities in zip(*each, strict=True)]


def _of_stages(network: Network, one: Microbatch, stages: list[range]) -> list[ActivationBytes]:
    return [_of_stage(network, one, number, blocks, len(stages)) for number, blocks in enumerate(stages)]


def _of_stage(network: Network, one: Microbatch, number: int, blocks: range, num_stages: int) -> ActivationBytes:
    is_first, is_last = number == 0, number == num_stages - 1
    under_way = min(num_stages - number, one.number)
    num_blocks = len(blocks) + (network.side(one).prenet_depth if is_first else 0)
    per_block, again = block(network, one), 0.0
    if network.config.parallel.recompute:
        per_block, again = network.hidden(one), per_block
    student = under_way * (num_blocks * per_block + (frontend(network, one) if is_first else 0.0))
    held, losing = (decoder(network, one), loss(network, one)) if is_last else (0.0, network.hidden(one))
    teaching = teacher(network, one)
    if num_stages == 1:
        peak = student + max(held + losing, held + teaching, again)
    else:  # the teacher has run for all microbatches before the student begins
        targets = (one.number - 1) * target(network, one) if is_last else 0.0
        losing += targets
        peak = max(targets + teaching, student + held + losing, student + targets + again)
    return ActivationBytes(
        student=int(student + again), decoder=int(held), teacher=int(teaching), loss=int(losing), peak=int(peak)
    )
