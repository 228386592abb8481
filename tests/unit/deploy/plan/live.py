"""What one forward and backward pass of a recipe holds on this process, by counting tensors that are alive."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from deploy.plan.shapes import microbatches
from model.data2vec import Data2Vec
from model.decoder import Decoder
from model.initialization import initialize
from model.losses import objective
from model.masking import split_views
from model.outputs import StudentOutput
from pretrain.config import RunConfig
from pretrain.masking import masking_of
from pretrain.parallel.grid import Grid
from tests.distributed.allocations import Allocations

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Live:
    """Bytes."""

    kept: int
    """For the backward pass when the student has run, the losses not counted."""
    decoder: int
    """Of these the decoder's."""
    peak: int
    """Most at once beside weights and gradients."""


def measure(config: RunConfig) -> Live:
    """One microbatch of one process, dropouts on."""
    ((one),) = microbatches(config, Grid(1, 1))
    dtype, modality = DTYPES[config.precision.dtype], one.modality
    student, teacher = Data2Vec(config.model), Data2Vec(config.model, role="teacher")
    initialize(student, 0)
    teacher.load_state_dict({name: student.state_dict()[name] for name in teacher.state_dict()})
    student, teacher = student.to(dtype), teacher.to(dtype).eval().requires_grad_(False)
    if config.parallel.recompute:
        student.recompute_blocks()
    side, num_samples = config.model.modalities[modality], round(one.samples)
    source = make_source(config, one.length, num_samples)
    masks = masking_of(config.model, modality).masks(range(num_samples), [one.length] * num_samples)
    tally = Tally(student, teacher)
    with tally.allocations:
        views = split_views(masks, int((~masks[0, 0]).sum()))
        noise = torch.randn(*views.removed.shape, config.model.encoder.dim, dtype=dtype)
        given = source.to(dtype) if source.is_floating_point() else source
        with tally.saved("student"):
            decoder = student.decoders[modality]
            assert isinstance(decoder, Decoder)
            decoder.dropout.register_forward_pre_hook(lambda *_: tally.begin("decoder"))
            out = student(given, views, noise, modality=modality)
        del noise
        goal = teacher.targets(given, out, modality=modality)
        assert isinstance(out, StudentOutput)
        terms = objective(side, out, goal.targets, source)
        loss = torch.stack([term.weight * term.sum / term.count for term in terms.values()]).sum()
        tally.storages.clear()
        del out, terms
        loss.backward()
    return Live(sum(tally.kept.values()), tally.kept["decoder"], tally.allocations.peak)


def make_source(config: RunConfig, length: int, num_samples: int) -> Tensor:
    """Random raw input."""
    generator = torch.Generator().manual_seed(0)
    if config.model.text is not None:
        return torch.randint(4, config.model.text.vocab_size, (num_samples, length), generator=generator)
    shape = (length,)
    if config.model.image is not None:
        shape = (config.model.image.in_channels, length, length)  # type: ignore[assignment]
    return torch.randn(num_samples, *shape, generator=generator)


class Tally:
    """Counts what is alive, and what autograd saves by part of the network."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        """Args: the networks, whose weights and gradients do not count."""
        for parameter in student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.allocations = Allocations()
        there = [*student.parameters(), *student.buffers(), *teacher.parameters(), *teacher.buffers()]
        self.allocations.ignore(there + [p.grad for p in student.parameters() if p.grad is not None])
        self._ours = {tensor.untyped_storage()._cdata for tensor in there}
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.kept = {"student": 0, "decoder": 0}
        self._part = "student"

    def begin(self, part: str) -> None:
        """What comes now belongs to ``part``."""
        self._part = part

    def saved(self, part: str) -> saved_tensors_hooks:
        """Inside, count each storage that is saved once."""
        self.begin(part)
        return saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._ours and storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage
            self.kept[self._part] += storage.nbytes()
        return tensor
