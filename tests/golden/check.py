"""``python -m tests.golden.check DIR``: our model against the reference's vectors.

Every case under DIR (MODALITY/NAME.json with NAME.safetensors, the layout of shared/golden) is run with the
configuration that its JSON holds; one JSON line per case says how far each quantity is off, relative to the
largest magnitude of the reference's tensor: max|ours - theirs| / max|theirs|. Exit status 1 beyond tolerance.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from model import ema
from model.data2vec import Data2Vec
from model.errors import ConfigError
from model.losses import objective
from model.masking import take
from tests.golden.case import Case
from tests.golden.recorder import Recorder

TOLERANCE = 1e-5
EMA_TOLERANCE = 1e-6
UNSHUFFLED = ("local_encoder", "local_features", "relpos")
"""Tensors of the student that hold all tokens in their order."""


def main(arguments: list[str]) -> int:
    """Check every case; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m tests.golden.check DIR", file=sys.stderr)
        return 2
    directory = Path(arguments[0]).resolve()
    results = [check(path) for path in case_paths(directory)]
    for result in results:
        print(json.dumps(result))
    if not results:
        print(f"no golden case under {directory}", file=sys.stderr)
    return 0 if results and all(result["ok"] for result in results) else 1


def case_paths(directory: Path) -> list[Path]:
    """The cases' JSON files under a folder, in order."""
    paths = [path for path in sorted(directory.rglob("*.json")) if path.with_suffix(".safetensors").is_file()]
    return [path for path in paths if "config_resolved" in json.loads(path.read_text(encoding="utf-8"))]


def check(path: Path) -> dict:
    """The result of one case."""
    try:
        case = Case.load(path)
    except ConfigError as error:  # one case that cannot be built must not hide the others
        return {
            "case": f"{path.parent.name}/{path.stem}",
            "ok": False,
            "beyond": ["configuration"],
            "error": str(error),
        }
    differences = forward_and_backward(case) | teacher_average(case) | features(case) | decay_schedule(case)
    beyond = {name: value for name, value in differences.items() if not value <= limit(name)}
    worst = max(differences, key=lambda name: differences[name] / limit(name))
    rounded = {name: float(f"{value:.3g}") for name, value in differences.items()}
    return {"case": case.name, "ok": not beyond, "worst": worst, "beyond": sorted(beyond), "difference": rounded}


def limit(quantity: str) -> float:
    """Largest allowed relative difference."""
    return EMA_TOLERANCE if quantity.startswith(("ema", "decay")) else TOLERANCE


def relative(ours: Tensor, theirs: Tensor) -> float:
    """max|ours - theirs| / max|theirs|; infinite if the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.detach().double(), theirs.double()
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()


def forward_and_backward(case: Case) -> dict[str, float]:
    """Student, teacher, losses and gradients of one training step."""
    student, teacher, views = case.student(), case.teacher(), case.views()
    padding = case.padding
    with Recorder(student, "student", case.modality) as student_parts:
        out = student(case.source, views, case.noise(views), modality=case.modality, padding=padding)
    with Recorder(teacher, "teacher", case.modality) as teacher_parts:
        goal = teacher.targets(case.source, out, modality=case.modality, padding=padding)
    parts = teacher_parts.seen | student_parts.seen | target_layers(case, teacher_parts.seen)
    parts |= {"targets": goal.targets, "student.encoder_out": out.encoded, "student.local_features": out.tokens}
    parts["pred_masked"] = out.prediction.flatten(0, 1)
    parts["target_masked"] = take(views.spread(goal.targets), views.removed).flatten(0, 1)
    different = {}
    for name, ours in parts.items():
        if name in case.tensors:
            shuffled = name.startswith("student.") and name.rpartition(".")[2] not in UNSHUFFLED
            theirs = case.ascending(case.tensors[name]) if shuffled else case.tensors[name]
            different[name] = relative(ours, theirs)
    return different | losses_and_gradients(case, student, objective(case.side, out, goal.targets, case.source))


def target_layers(case: Case, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """What every teacher block could give to the target, before normalisation."""
    num_extra = case.side.num_extra_tokens
    blocks = range(case.config.encoder.depth)
    return {f"teacher.target_layer{i}": seen[f"teacher.block{i}.t"][:, num_extra:] for i in blocks}


def losses_and_gradients(case: Case, student: Data2Vec, terms: dict) -> dict[str, float]:
    """Each term of the reference's summed loss, and the gradient of their sum."""
    sample_size = terms["regression"].count
    # the reference sums its terms over tokens and divides by their number; cls_rows are this case's rows
    weighted = {
        name: term.weight * term.sum / term.count * sample_size for name, term in terms.items() if term.weight > 0
    }
    theirs = {name.removeprefix(f"{case.modality.upper()}_"): value for name, value in case.facts["losses_sum"].items()}
    theirs = {{"recon": "reconstruction"}.get(name, name): value for name, value in theirs.items()}
    total = torch.stack(list(weighted.values())).sum()
    total.backward()
    different = {"sample_size": abs(sample_size / case.facts["sample_size"] - 1)}
    for name in weighted.keys() | theirs.keys():
        ours = weighted[name].item() if name in weighted else float("nan")
        different[f"loss.{name}"] = abs(ours / theirs.get(name, float("nan")) - 1)
    different["loss"] = abs(total.item() / case.facts["loss_total_sum"] - 1)
    expected = case.group("grad")
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    different["gradients.names"] = 0.0 if gradients.keys() == expected.keys() else float("inf")
    for name in gradients.keys() & expected.keys():
        different[f"gradient.{name}"] = relative(gradients[name], expected[name])
    norm = torch.stack([gradient.double().norm() for gradient in gradients.values()]).norm().item()
    different["gradient_norm"] = abs(norm / case.facts["grad_norm_sum_loss"] - 1)
    return different


def teacher_average(case: Case) -> dict[str, float]:
    """The teacher after one and two updates of the student, and the student after two."""
    student, average = case.group("param"), case.group("ema")
    gradients, schedule = case.group("grad"), case.facts["config_resolved"]["model"]
    different = {}
    for update in (1, 2):
        for name, gradient in gradients.items():
            student[name] = student[name] - 0.5 * gradient / case.facts["sample_size"]
        tau = ema.decay(update, schedule["ema_decay"], schedule["ema_end_decay"], schedule["ema_anneal_end_step"])
        names = [name for name in average if name in gradients]
        average |= {name: student[name] for name in average if name not in gradients}  # copied, as the positions are
        ema.lerp_([average[name] for name in names], [student[name] for name in names], tau)
        for name, theirs in case.group(f"ema_after{update}").items():
            different[f"ema_after{update}.{name}"] = relative(average[name], theirs)
    for name, theirs in case.group("param_after2").items():
        different[f"param_after2.{name}"] = relative(student[name], theirs)
    return different


@torch.no_grad()
def features(case: Case) -> dict[str, float]:
    """The student's unmasked encoding in evaluation mode."""
    student = case.student().eval()
    with Recorder(student, "features", case.modality) as parts:
        x = student.features(case.source, modality=case.modality, padding=case.padding)
    ours = {"features.x": x[:, case.side.num_extra_tokens :]}
    for number in range(case.config.encoder.depth):
        ours[f"features.layer_result{number}"] = parts.seen[f"features.block{number}.t"]
    return {name: relative(value, case.tensors[name]) for name, value in ours.items() if name in case.tensors}


def decay_schedule(case: Case) -> dict[str, float]:
    """The decay at the steps that the case lists."""
    section = case.facts["config_resolved"]["model"]
    arguments = (section["ema_decay"], section["ema_end_decay"], section["ema_anneal_end_step"])
    return {
        f"decay.{step}": abs(ema.decay(int(step), *arguments) / value - 1)
        for step, value in case.facts.get("decay_schedule", {}).items()
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
