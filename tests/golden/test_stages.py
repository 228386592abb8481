"""The committed goldens through two stages of a model: outputs, targets, losses and every gradient."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.data2vec import Data2Vec, Role
from model.losses import objective
from model.outputs import StageOutput, StudentOutput, TeacherOutput
from tests.golden.case import Case
from tests.golden.check import TOLERANCE, relative

HERE = Path(__file__).parent


def two_stages(case: Case, cut: int, role: Role) -> Iterator[Data2Vec]:
    """The case's student or teacher; the second stage begins with block ``cut``."""
    whole = case.student() if role == "student" else case.teacher()
    weights = whole.state_dict()
    for numbers in (range(cut), range(cut, case.config.encoder.depth)):
        stage = Data2Vec(case.config, role=role, numbers=numbers).train(whole.training)
        stage.load_state_dict({name: weights[name] for name in stage.state_dict()})
        yield stage


def run_student(case: Case, first: Data2Vec, last: Data2Vec) -> tuple[StudentOutput, Tensor, Tensor]:
    """Output of the last stage; the hidden state as it left the first and as the last took it."""
    views, given = case.views(), {"modality": case.modality, "padding": case.padding}
    left = first(case.source, views, None, **given)
    assert isinstance(left, StageOutput)
    arrived = left.hidden.detach().requires_grad_()
    output = last(case.source, views, case.noise(views), hidden=arrived, **given)
    assert isinstance(output, StudentOutput)
    return output, left.hidden, arrived


def run_teacher(case: Case, first: Data2Vec, last: Data2Vec, student: Data2Vec) -> TeacherOutput:
    """Targets and encoding."""
    given = {"modality": case.modality, "padding": case.padding}
    state, bias = first.teacher_start(case.source, student.local_output(case.source, **given), **given)
    state = first.teacher_stage(state, bias, modality=case.modality)
    assert (state.total is None) == (first.first_averaged(case.modality) >= last.numbers.start)
    bias = last.teacher_bias(case.modality, case.tensors["mask"].shape[1], case.padding, case.source.device)
    return last.teacher_end(last.teacher_stage(state, bias, modality=case.modality), modality=case.modality)


def tie(first: Data2Vec, last: Data2Vec, weights: dict[str, Tensor], modality: str) -> Tensor | None:
    """Give the last stage ALiBi's scale."""
    name = f"frontends.{modality}.alibi_scale"
    if name in weights:
        last.scales[modality] = weights[name].clone().requires_grad_()
    return last.scales.get(modality)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_two_stages_give_the_references_vectors(modality: str, recompute: bool) -> None:
    case, cut = Case.load(HERE / modality / "mini.json"), 1
    first, last = two_stages(case, cut, "student")
    teacher_first, teacher_last = two_stages(case, cut, "teacher")
    scale = tie(first, last, case.group("param"), modality)
    own = teacher_first.frontends if modality in teacher_first.frontends else first.frontends
    tie(
        teacher_first,
        teacher_last,
        {f"frontends.{modality}.{n}": p for n, p in own[modality].named_parameters()},
        modality,
    )
    if recompute:
        first.recompute_blocks()
        last.recompute_blocks()

    output, left, arrived = run_student(case, first, last)
    goal = run_teacher(case, teacher_first, teacher_last, first)
    assert relative(goal.targets, case.tensors["targets"]) < TOLERANCE
    assert relative(output.prediction.flatten(0, 1), case.tensors["pred_masked"]) < TOLERANCE
    assert relative(output.encoded, case.ascending(case.tensors["student.encoder_out"])) < TOLERANCE

    terms = objective(case.side, output, goal.targets, case.source)
    sample_size = terms["regression"].count
    loss = torch.stack([term.weight * term.sum / term.count * sample_size for term in terms.values()]).sum()
    assert abs(loss.item() / case.facts["loss_total_sum"] - 1) < TOLERANCE
    loss.backward()
    left.backward(arrived.grad)
    gradients = {name: p.grad for stage in (first, last) for name, p in stage.named_parameters() if p.grad is not None}
    if scale is not None:
        assert scale.grad is not None
        gradients[f"frontends.{modality}.alibi_scale"] += scale.grad
    expected = case.group("grad")
    assert gradients.keys() == expected.keys()
    assert max(relative(gradients[name], expected[name]) for name in expected) < TOLERANCE
