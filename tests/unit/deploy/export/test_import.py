"""fairseq's files as our checkpoints, and back: every tensor has its place, none changes a bit."""

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from deploy.export.fairseq import from_fairseq
from deploy.export.fairseq_cfg import fairseq_cfg
from deploy.export.fairseq_export import export_fairseq
from deploy.export.fairseq_file import FairseqFile, read_file
from deploy.export.fairseq_import import import_fairseq, translated
from deploy.export.fairseq_options import completed
from deploy.export.fairseq_run import model_config, run_config
from deploy.export.fairseq_state import POSITIONS_NAME
from deploy.export.heads import read_head
from model.positions import sincos_2d
from model.sections import MaskConfig
from pretrain.checkpoint.manifest import Manifest, damage
from pretrain.checkpoint.progress import read_run_config
from pretrain.checkpoint.store import complete_checkpoints, locate
from pretrain.checkpoint.weights import read_weights
from pretrain.config import differences
from pretrain.errors import RunError
from pretrain.evaluate.encoder import trained_encoder
from pretrain.recipes.registry import RECIPES
from tests.golden.case import Case
from tests.golden.tables import state_dict_shapes
from tests.unit.deploy.export.fairseq_files import (
    GOLDEN,
    LETTERS,
    NUM_UPDATES,
    SYMBOLS,
    ctc,
    glue,
    golden,
    half,
    imagenet,
    pretrained,
    save,
)

MODALITIES = ("image", "audio", "text")
CONFIGS = {
    "base_images_only_task": "image-base",
    "large_images_only_task": "image-large",
    "huge_images_only_task": "image-huge16",
    "huge_images14_only_task": "image-huge14",
    "base_audio_only_task": "audio-base",
    "large_audio_only_task": "audio-large",
    "base_text_only_task": "text-base",
    "large_text_only_task": "text-large",
}


def mini(modality: str) -> Path:
    return GOLDEN / modality / "mini"


def imported(tmp_path: Path, checkpoint: dict[str, Any]) -> Path:
    """The step directory that a file becomes."""
    import_fairseq(save(checkpoint, tmp_path / "model.pt"), tmp_path / "run")
    return locate(tmp_path / "run")


@pytest.mark.parametrize("modality", MODALITIES)
def test_checkpoint_holds_student_and_teacher(tmp_path: Path, modality: str) -> None:
    """Weights as the goldens' own reader has them, in a directory that all readers take."""
    checkpoint, case = imported(tmp_path, pretrained(mini(modality))), Case.load(mini(modality).with_suffix(".json"))
    assert complete_checkpoints(tmp_path / "run") == [checkpoint]
    assert damage(checkpoint, Manifest.read(checkpoint).files) is None
    assert Manifest.read(checkpoint).step == NUM_UPDATES and checkpoint.name == f"step-{NUM_UPDATES:08d}"
    for source, expected in (("student", case.student()), ("teacher", case.teacher())):
        weights = read_weights(checkpoint, source)  # type: ignore[arg-type]
        parameters = dict(expected.named_parameters())
        assert weights.keys() == parameters.keys()
        assert all(torch.equal(weights[name], parameters[name]) for name in weights)
    config = read_run_config(checkpoint)
    steps = case.facts["config_resolved"]["optimization"]["max_update"]
    assert (config.model.encoder.depth, config.training.max_steps) == (2, steps)
    assert config.ema.start == case.facts["config_resolved"]["model"]["ema_decay"]
    features = trained_encoder(checkpoint, "student").features(case.source, modality=modality, padding=case.padding)
    difference = features[:, case.side.num_extra_tokens :] - case.tensors["features.x"]
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("make", [lambda checkpoint: checkpoint, half], ids=["fp32", "fp16"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_there_and_back_is_equal_to_the_bit(tmp_path: Path, modality: str, make: Callable[..., Any]) -> None:
    original = make(pretrained(mini(modality)))
    export_fairseq(imported(tmp_path, original), tmp_path / "back.pt")
    assert_same(original, torch.load(tmp_path / "back.pt", weights_only=True))


@pytest.mark.parametrize(("modality", "make"), [("image", imagenet), ("text", glue), ("audio", ctc)])
def test_fine_tuned_files_there_and_back(tmp_path: Path, modality: str, make: Callable[..., Any]) -> None:
    original = make(mini(modality))
    checkpoint = imported(tmp_path, half(original))
    found = read_head(checkpoint)
    assert found is not None
    head, weights = found
    heads = {
        name: tensor for name, tensor in original["model"].items() if re.search(r"head|fc_norm|\.proj\.\w+$", name)
    }
    assert head.num_outputs == {"image": 10, "text": 3, "audio": len(SYMBOLS)}[modality]
    assert torch.equal(weights["classifier.weight"], list(heads.values())[-2].half().float())
    with pytest.raises(RunError, match="holds no teacher"):
        read_weights(checkpoint, "teacher")
    export_fairseq(checkpoint, tmp_path / "back.pt")
    assert_same(half(original), torch.load(tmp_path / "back.pt", weights_only=True))


def assert_same(original: dict[str, Any], back: dict[str, Any]) -> None:
    assert back.keys() >= original.keys() - {"last_optimizer_state"}
    assert back["cfg"] == original["cfg"]
    assert back["optimizer_history"][-1]["num_updates"] == NUM_UPDATES
    before, after = dict(original["model"]), dict(back["model"])
    assert ("_ema" in before) == ("_ema" in after)
    for theirs, ours in ((before.pop("_ema", {}), after.pop("_ema", {})), (before, after)):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype, name
            assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("modality", MODALITIES)
def test_our_own_run_there_and_back(tmp_path: Path, modality: str) -> None:
    """Without anything that was kept aside: configuration and positions are made anew."""
    first = imported(tmp_path, pretrained(mini(modality)))
    for name in ("fairseq.json", "fairseq.safetensors"):
        (first / name).unlink()
    export_fairseq(first, tmp_path / "ours.pt")
    import_fairseq(tmp_path / "ours.pt", tmp_path / "second")
    second = locate(tmp_path / "second")
    for source in ("student", "teacher"):
        before, after = read_weights(first, source), read_weights(second, source)  # type: ignore[arg-type]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    batch = ("training.global_batch_size", "model.text.loss.cls_rows")  # the file does not tell it
    assert differences(read_run_config(first), read_run_config(second), batch) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_survives_fairseqs_configuration(recipe: str) -> None:
    """What fairseq knows of it: not how tensors are first drawn, nor how a tiny run is watched."""
    config = RECIPES[recipe]()
    if len(config.model.modalities) > 1:
        return
    (modality,) = config.model.modalities
    text = config.model.text
    cfg = fairseq_cfg(config, modality)
    model = model_config(cfg, modality, fine_tuned=False, vocab_size=text and text.vocab_size, has_scale=False)
    back = run_config(cfg, model)
    tiny = (f"data.{modality}", "model.encoder.init_std", f"model.{modality}.loss.cls_rows")
    assert differences(config, back, tiny if recipe.endswith("tiny") else ()) == []


@pytest.mark.parametrize("modality", MODALITIES)
def test_configuration_has_every_option_of_fairseq(modality: str) -> None:
    recipe = RECIPES[f"{modality}-base"]()
    ours = fairseq_cfg(recipe, modality)["model"]
    theirs = golden(mini(modality))[0]["model"]
    assert options(ours) == options(theirs)


def test_options_that_a_file_does_not_know_have_fairseqs_defaults() -> None:
    """The goldens leave the modalities that they do not have as fairseq's dataclasses made them."""
    ours = completed({"num_heads": 4, "depth": 2})["modalities"]
    untouched = [(model, side) for model in MODALITIES for side in MODALITIES if model != side]
    for model, side in untouched:
        assert ours[side] == golden(mini(model))[0]["model"]["modalities"][side], side


def options(section: dict[str, Any], prefix: str = "") -> set[str]:
    found = {prefix + name for name in section}
    return found.union(*(options(v, f"{prefix}{n}.") for n, v in section.items() if isinstance(v, dict)))


def test_what_fairseq_cannot_say_is_named() -> None:
    config = RECIPES["text-base"]()
    assert config.model.text is not None
    blocks = dataclasses.replace(config.model.text, mask=MaskConfig(kind="block", prob=0.5, length=3))
    model = dataclasses.replace(config.model, text=blocks)
    with pytest.raises(RunError, match=r"fairseq has no option for model\.text\.mask\.kind"):
        fairseq_cfg(dataclasses.replace(config, model=model), "text")


def test_spans_of_audio_are_made_by_fairseqs_model() -> None:
    config = RECIPES["audio-base"]()
    assert config.model.audio is not None and fairseq_cfg(config, "audio")["task"]["precompute_mask_config"] == {}
    spans = dataclasses.replace(config.model.audio, mask=MaskConfig(kind="span", prob=0.5, length=5))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, audio=spans))
    assert fairseq_cfg(config, "audio")["task"]["precompute_mask_config"] is None


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_of_the_released_configurations_has_its_place(config: str) -> None:
    """Full size; the zeros take no memory."""
    recipe = RECIPES[CONFIGS[config]]()
    (modality,) = recipe.model.modalities
    student = {name: torch.zeros(()).expand(shape) for name, shape in state_dict_shapes()[config]["shapes"].items()}
    image = recipe.model.image
    if image is not None:
        student[POSITIONS_NAME] = sincos_2d(image.grid_size, recipe.model.encoder.dim)
    teacher = {name: tensor for name, tensor in student.items() if in_teacher(name, modality)}
    teacher = {name.removeprefix("blocks.") if modality == "text" else name: t for name, t in teacher.items()}
    file = FairseqFile(fairseq_cfg(recipe, modality), student, teacher, 400, ())
    found = translated(file)
    assert found.student.notes == [] and found.teacher is not None and found.teacher.notes == []
    assert len(found.student.ours) + len(found.student.aside) == len(student)
    assert len(found.teacher.ours) + len(found.teacher.aside) == len(teacher)
    assert {name for name, _ in found.student.ours.values()} | found.student.aside.keys() == student.keys()
    assert found.config.model == recipe.model and found.config.name == recipe.name
    if "base" in config:  # counts of the facts, section 5
        assert len(teacher) == {"image": 150, "audio": 157, "text": 144}[modality]


def in_teacher(name: str, modality: str) -> bool:
    if modality == "text":
        return name.startswith("blocks.")
    local = (".local_encoder.", ".project_features.") if modality == "audio" else ()
    return not any(part in name for part in (".decoder.", *local))


def test_older_spellings(tmp_path: Path) -> None:
    """A scale of four dimensions; other names of positions and patches; a mask; half-precision positions."""
    checkpoint = pretrained(mini("audio"))
    name = "modality_encoders.AUDIO.alibi_scale"
    for tensors in (checkpoint["model"], checkpoint["model"]["_ema"]):
        tensors[name] = tensors[name].squeeze(0)
    weights = read_weights(imported(tmp_path, checkpoint), "teacher")
    expected = pretrained(mini("audio"))["model"]["_ema"][name]
    assert torch.equal(weights["frontends.audio.alibi_scale"], expected)

    checkpoint = pretrained(mini("image"))
    image = "modality_encoders.IMAGE."
    older = {POSITIONS_NAME: f"{image}positional_encoder.pos_embed"}
    older |= {f"{image}local_encoder.proj.{kind}": f"{image}local_encoder.0.proj.{kind}" for kind in ("weight", "bias")}
    model = OrderedDict((older.get(name, name), tensor) for name, tensor in checkpoint["model"].items())
    model[f"{image}encoder_mask"] = torch.zeros(1, 1, 32)
    checkpoint["cfg"]["model"]["modalities"]["image"]["mae_masking"] = True
    del checkpoint["cfg"]["model"]["recon_loss"]
    del checkpoint["cfg"]["model"]["modalities"]["image"]["decoder"]["projection_ratio"]
    path = save(checkpoint | {"model": model}, tmp_path / "older.pt")
    assert f"dropped {image}encoder_mask, which nothing reads" in import_fairseq(path, tmp_path / "older")
    back = export_fairseq(tmp_path / "older", tmp_path / "newer.pt")
    assert "48 tensors of the model" in back
    newer, original = torch.load(tmp_path / "newer.pt", weights_only=True)["model"], pretrained(mini("image"))["model"]
    assert newer.keys() == original.keys()
    assert all(torch.equal(newer[name], original[name]) for name in older)


def test_other_positions_are_pointed_out(tmp_path: Path) -> None:
    checkpoint = pretrained(mini("image"))
    checkpoint["model"][POSITIONS_NAME] = checkpoint["model"][POSITIONS_NAME] + 0.5
    said = import_fairseq(save(checkpoint, tmp_path / "model.pt"), tmp_path / "run")
    assert "positions differ from the sine-cosine table by up to 0.5" in said


@pytest.mark.parametrize(
    ("modality", "change", "words"),
    [
        ("image", lambda m: m.pop("blocks.1.mlp.fc2.bias"), "lacks blocks.1.mlp.fc2.bias"),
        ("text", lambda m: m["_ema"].pop("1.mlp.fc2.bias"), "lacks 1.mlp.fc2.bias of _ema"),
        ("audio", lambda m: m.update({"x.weight": m["blocks.0.norm1.bias"]}), "x.weight without a place in our model"),
        ("image", lambda m: m.update({"blocks.0.norm1.bias": torch.ones(3)}), "blocks.0.norm1.bias has shape (3,)"),
        ("image", lambda m: m.update({POSITIONS_NAME: torch.ones(1, 4, 32)}), "positions has shape (1, 4, 32)"),
        ("audio", lambda m: m.update(pretrained(mini("text"))["model"]), "a model of AUDIO, TEXT: only files of one"),
        ("text", lambda m: [m.pop(name) for name in list(m) if "TEXT" in name], "not a data2vec 2.0 model"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, modality: str, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    checkpoint = pretrained(mini(modality))
    change(checkpoint["model"])
    refused(tmp_path, checkpoint, words)


@pytest.mark.parametrize(
    ("make", "change", "words"),
    [
        (imagenet, {"prediction_mode": "LIN_SOFTMAX"}, "cfg.model.prediction_mode: LIN_SOFTMAX is not supported"),
        (imagenet, {"pretrained_model_args": None}, "cfg.model.pretrained_model_args does not hold"),
        (glue, {"pooler_activation_fn": "relu"}, "cfg.model.pooler_activation_fn: 'relu' is not supported"),
        (ctc, {"blank_weight": 2.0}, "cfg.model.blank_weight: 2.0 is not supported"),
    ],
)
def test_heads_that_ours_do_not_know_are_refused(
    tmp_path: Path, make: Callable[..., Any], change: dict[str, Any], words: str
) -> None:
    checkpoint = make(mini({imagenet: "image", glue: "text", ctc: "audio"}[make]))
    checkpoint["cfg"]["model"] |= change
    refused(tmp_path, checkpoint, words)


def test_heads_that_are_several_or_half_are_refused(tmp_path: Path) -> None:
    checkpoint = glue(mini("text"))
    other = {name.replace("sentence_classification_head", "sts"): t for name, t in checkpoint["model"].items()}
    refused(tmp_path, checkpoint | {"model": checkpoint["model"] | other}, "holds the heads sentence_")
    checkpoint = imagenet(mini("image"))
    del checkpoint["model"]["head.bias"]
    refused(tmp_path, checkpoint, "of its head")


def test_option_that_our_model_lacks_is_named(tmp_path: Path) -> None:
    checkpoint = pretrained(mini("image"))
    checkpoint["cfg"]["model"]["layer_norm_first"] = True
    refused(tmp_path, checkpoint, "model.layer_norm_first: True is not supported")
    checkpoint["cfg"]["model"] = {"depth": 2, "modalities": {"image": None}}
    refused(tmp_path, checkpoint, "'image' does not say which of audio, text the model has")
    checkpoint["cfg"]["model"] = {"depth": 2, "modalities": {"image": {"decoder": 5}}}
    refused(tmp_path, checkpoint, "cfg.model is not that of a data2vec 2.0 model")


def refused(tmp_path: Path, checkpoint: dict[str, Any], words: str) -> None:
    path = save(checkpoint, tmp_path / "model.pt")
    with pytest.raises(RunError) as error:
        import_fairseq(path, tmp_path / "run")
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value), error.value
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


class Dictionary:
    """Stands for fairseq's in a CTC file."""

    def __init__(self, symbols: list[str]) -> None:
        self.symbols = symbols


@pytest.mark.parametrize("where", ["task", "file"])
def test_letters_of_a_ctc_head(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Number 0, fairseq's blank, gets the name that transformers gives to the blank."""
    letters = tmp_path / "dict.ltr.txt"
    letters.write_text("".join(f"{letter} {1000 - i}\n" for i, letter in enumerate(LETTERS)), encoding="utf-8")
    file = read_file(save(ctc(mini("audio")), tmp_path / "ctc.pt"))
    if where == "task":
        file = file._replace(symbols=tuple(SYMBOLS))
    head = translated(file, None if where == "task" else letters).head
    assert head is not None and head.kind == "ctc"
    assert head.labels == ("<pad>", "<s>", "</s>", "<unk>", *LETTERS)
    with pytest.raises(RunError, match="its dictionary has 3 letters, the head 32"):
        translated(file._replace(symbols=("a", "b", "c")))
    unnamed = translated(file._replace(symbols=())).head
    assert unnamed is not None  # as many letters as LibriSpeech's dictionary has
    assert unnamed.labels == ("<pad>", "<s>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
    short = {
        name: tensor[:9] if name.startswith("w2v_encoder.proj") else tensor for name, tensor in file.student.items()
    }
    assert translated(file._replace(symbols=(), student=short)).head.labels == ()  # type: ignore[union-attr]


def test_options_of_fine_tuning_do_not_stay(tmp_path: Path) -> None:
    """The encoder is what pretraining configured; its scale of distances can be trained again."""
    config = read_run_config(imported(tmp_path, ctc(mini("audio"))))
    audio = config.model.audio
    assert audio is not None and audio.alibi is not None and audio.alibi.learned
    assert (audio.mask.prob, audio.mask.length) == (0.5, 5)
    assert config.model.encoder.layer_dropout == 0.1


def test_occupied_places_are_left_alone(tmp_path: Path) -> None:
    path = save(pretrained(mini("text")), tmp_path / "model.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(RunError, match="exists and is not empty"):
        import_fairseq(path, tmp_path / "run")
    import_fairseq(path, tmp_path / "good")
    with pytest.raises(RunError, match=r"model\.pt: exists"):
        export_fairseq(tmp_path / "good", path)
    assert torch.load(path, weights_only=True)["optimizer_history"]


def test_stored_tensors_are_flat_fp32(tmp_path: Path) -> None:
    checkpoint = imported(tmp_path, half(pretrained(mini("text"))))
    original = pretrained(mini("text"))["model"]["blocks.0.attn.qkv.weight"].half()
    with safe_open(checkpoint / "rank-00000.safetensors", framework="pt") as file:
        stored: Tensor = file.get_tensor("student/encoder.blocks.0.attention.qkv.weight")
    assert stored.dtype == torch.float32 and stored.dim() == 1
    assert torch.equal(stored, from_fairseq(".qkv.", original.float(), 4).reshape(-1))
