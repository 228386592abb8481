"""Bytes that a step holds beside weights and their gradients, by what autograd keeps for the backward pass. No torch.

The counts are those of this network under torch 2.13, seen with saved-tensor hooks
(``tests/unit/deploy/plan/test_activations.py`` measures them anew).
"""

from dataclasses import dataclass

from deploy.plan.engine import ALLREDUCE_NUMEL, SIZES
from deploy.plan.kept import Network, Parts, parts
from deploy.plan.rank import Rank
from deploy.plan.shapes import Microbatch, microbatches
from pretrain.config import RunConfig
from pretrain.parallel.grid import Grid
from pretrain.work import stages_of_run


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
    reduction: int
    """The copy that stage 0 makes of gradients to reduce them, once the backward passes are done."""
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
    of_each = [(one, parts(network, one)) for one in microbatches(config, grid)]
    return activations_of(config, grid, of_each, stages_of_run(config, pp_size=grid.pp_size))


def activations_of(
    config: RunConfig, grid: Grid, of_each: list[tuple[Microbatch, Parts]], stages: list[range]
) -> list[ActivationBytes]:
    """The same from what every modality's microbatch takes."""
    prenets = {one.modality: config.model.modalities[one.modality].prenet_depth for one, _ in of_each}
    found = []
    for number, blocks in enumerate(stages):
        reduction = _reduction(config, grid, number)
        of_all = [
            _of_stage(
                one,
                held,
                number,
                len(blocks) + prenets[one.modality] * (number == 0),
                len(stages),
                recompute=config.parallel.recompute,
                reduction=reduction,
            )
            for one, held in of_each
        ]
        found.append(max(of_all, key=lambda held: held.peak))
    return found


def _reduction(config: RunConfig, grid: Grid, stage: int) -> int:
    if config.parallel.zero_stage > 0:
        return 0
    return SIZES["fp32"] * min(Rank(config, grid, stage).numel, ALLREDUCE_NUMEL)


def _of_stage(
    one: Microbatch,
    each: Parts,
    number: int,
    num_blocks: int,
    num_stages: int,
    *,
    recompute: bool,
    reduction: int,
) -> ActivationBytes:
    is_first, is_last = number == 0, number == num_stages - 1
    under_way = min(num_stages - number, one.number)
    per_block, again = (each.hidden, each.block) if recompute else (each.block, 0.0)
    student = under_way * (num_blocks * per_block + (each.frontend if is_first else 0.0))
    held, losing = (each.decoder, each.loss) if is_last else (0.0, each.hidden)
    if num_stages == 1:
        peak = student + max(held + losing, held + each.teacher, again)
    else:  # the teacher has run for all microbatches before the student begins
        targets = (one.number - 1) * each.target if is_last else 0.0
        losing += targets
        peak = max(targets + each.teacher, student + held + losing, student + targets + again)
    return ActivationBytes(
        student=int(student + again),
        decoder=int(held),
        teacher=int(each.teacher),
        loss=int(losing),
        reduction=reduction,
        peak=int(max(peak, losing + reduction)),
    )
