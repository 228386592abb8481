"""Compiled blocks: the same losses and gradients, and few graphs for many lengths.

``aot_eager`` runs all of torch.compile but the generation of code, which takes half a minute a graph on a CPU.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from data_pipelines.batches.base import Batch
from model.config import ModelConfig
from model.data2vec import Data2Vec
from model.initialization import initialize
from model.losses import objective
from model.masking import split_views
from model.outputs import StudentOutput
from pretrain.compilation import compile_blocks
from pretrain.errors import RunError
from pretrain.sections import ParallelSection
from tests.distributed.synthetic import make_batch, model_config


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Networks:
    """A student and its teacher."""

    def __init__(self, config: ModelConfig, backend: str | None = None, *, recompute: bool = False) -> None:
        self.config = config
        self.student, self.teacher = Data2Vec(config), Data2Vec(config, role="teacher")
        initialize(self.student, 0)
        shared = self.teacher.state_dict().keys()
        self.teacher.load_state_dict({n: v for n, v in self.student.state_dict().items() if n in shared})
        self.teacher.eval().requires_grad_(False)
        if recompute:
            self.student.recompute_blocks()
        for network in (self.student, self.teacher) if backend else ():
            compile_blocks(network, dynamic=config.audio is not None, backend=backend or "")

    def step(self, batch: Batch, skipped: frozenset[int] = frozenset()) -> tuple[Tensor, Tensor]:
        """Loss and targets; gradients accumulate."""
        side, views = self.config.modalities[batch.modality], split_views(batch.mask, batch.num_kept)
        noise = torch.randn(*views.removed.shape, self.config.encoder.dim, generator=torch.Generator().manual_seed(1))
        named = {"modality": batch.modality, "padding": batch.padding}
        out = self.student(batch.source, views, noise, skipped=skipped, **named)
        assert isinstance(out, StudentOutput)
        goal = self.teacher.targets(batch.source, out, **named)  # type: ignore[arg-type]
        terms = objective(side, out, goal.targets, batch.source).values()
        loss = torch.stack([term.weight * term.sum / term.count for term in terms]).sum()
        loss.backward()
        return loss.detach(), goal.targets


def assert_same(plain: Networks, compiled: Networks, batch: Batch, skipped: frozenset[int] = frozenset()) -> None:
    """One more step of both."""
    for one, other in zip(compiled.step(batch, skipped), plain.step(batch, skipped), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    wanted = dict(plain.student.named_parameters())
    for name, parameter in compiled.student.named_parameters():
        assert (parameter.grad is None) == (wanted[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_generated_code_computes_the_same() -> None:
    config = model_config(["audio"], 0.0)
    plain, compiled = Networks(config), Networks(config, "inductor")
    for number in range(4):
        assert_same(plain, compiled, make_batch(config, "audio", number, 2))
    assert counters["stats"]["unique_graphs"] <= 3
    assert not counters["graph_break"]


def test_lengths_modalities_and_left_out_blocks_share_graphs_under_recomputation() -> None:
    config = model_config(["image", "audio", "text"], 0.0)
    plain, compiled = Networks(config), Networks(config, "aot_eager", recompute=True)
    lengths = set()
    for number in range(5):
        for modality in ("image", "audio", "text"):
            batch = make_batch(config, modality, number, 2)
            lengths.add((modality, batch.length))
            assert_same(plain, compiled, batch, frozenset({2}) if number == 3 else frozenset())
    assert len(lengths) == 6  # four of audio
    assert 0 < counters["stats"]["unique_graphs"] <= 3
    assert not counters["graph_break"]


def test_static_shapes_have_a_graph_each() -> None:
    config = model_config(["image", "text"], 0.0)
    plain, compiled = Networks(config), Networks(config, "aot_eager")
    for modality in ("image", "text", "image", "text"):
        assert_same(plain, compiled, make_batch(config, modality, 0, 2))
    student_and_teacher = 2
    assert counters["stats"]["unique_graphs"] == 2 * student_and_teacher
    assert not counters["graph_break"]


def test_dropout_is_drawn_from_the_seed() -> None:
    config = model_config(["image"], 0.2)
    batch, losses = make_batch(config, "image", 0, 2), []
    for seed in (1, 1, 2):
        networks = Networks(config, "aot_eager", recompute=seed == 1)
        torch.manual_seed(seed)
        losses.append(networks.step(batch)[0].item())
    assert losses[0] == losses[1] != losses[2]


def test_stage_3_is_refused() -> None:
    with pytest.raises(RunError, match=r"parallel.compile: blocks .*zero_stage 3.*nearest stage is 2"):
        ParallelSection(compile="blocks", zero_stage=3)


def test_recomputation_in_stages_is_refused() -> None:
    """Torch would find other tensors than it kept, once microbatches of another shape have compiled a graph."""
    with pytest.raises(RunError, match=r"parallel.compile: blocks and parallel.recompute .*stages"):
        ParallelSection(compile="blocks", recompute=True, pp_size=2)
    assert ParallelSection(compile="blocks", recompute=True, tp_size=2).compile == "blocks"


def test_sequence_parallelism_is_refused() -> None:
    with pytest.raises(RunError, match=r"parallel.compile: blocks does not go with parallel.sequence_parallel"):
        ParallelSection(compile="blocks", sequence_parallel=True, tp_size=2)
