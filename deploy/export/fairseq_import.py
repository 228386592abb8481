"""A fairseq checkpoint as a run directory of ours, which every other command reads.

OUT/
    config.yaml                    the nearest recipe with fairseq's values laid over it
    checkpoints/latest
    checkpoints/step-00400000/
        manifest.json, config.yaml, rank-00000.safetensors      as training writes them, without Adam's moments
        fairseq.json, fairseq.safetensors                       what only the way back to fairseq needs
        head.json, head.safetensors                             of a fine-tuned model
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_pipelines.errors import DataError
from deploy.export.fairseq_file import FairseqFile, read_file
from deploy.export.fairseq_origin import HEAD, TEACHER, Origin, write_origin
from deploy.export.fairseq_run import left_out, model_config, pretraining_section, run_config
from deploy.export.fairseq_state import (
    Mapped,
    Wrapper,
    check_head,
    current_names,
    flat,
    head_facts,
    mapped,
    modality_of,
    unwrapped,
    wrapper_of,
)
from deploy.export.folder import new_folder, refuse_occupied
from deploy.export.heads import Head, write_head
from model.errors import ConfigError
from pretrain.checkpoint.manifest import FileRecord, Manifest, file_sha256
from pretrain.checkpoint.store import step_directory
from pretrain.config import RunConfig, write_yaml
from pretrain.errors import RunError

_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
LIBRISPEECH = (*_SPECIALS, *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
"""Of fairseq's dict.ltr.txt, which all its models of English letters have; taken where a file of as many names none."""


class Imported(NamedTuple):
    """A file in our words."""

    config: RunConfig
    student: Mapped
    teacher: Mapped | None
    head: Head | None
    head_weights: dict[str, Tensor]


def import_fairseq(file: Path, out: Path, letters: Path | None = None) -> str:
    """Write ``out``; nothing appears there unless every tensor of the file has its place.

    Args:
        file: of fairseq's data2vec 2.0, pretrained or fine-tuned.
        out: must not exist, or be an empty folder.
        letters: fairseq's dict.ltr.txt, for a CTC head whose file does not name its letters.
    Returns:
        What was imported, in words.
    Raises:
        RunError: if the file cannot be used; names the tensor or option.
    """
    refuse_occupied(out)
    content = read_file(file)
    try:
        imported = translated(content, letters)
    except (ConfigError, DataError, RunError) as error:
        raise RunError(f"{file}: {error}") from error
    with new_folder(out) as folder:
        checkpoint = step_directory(folder, content.num_updates)
        checkpoint.mkdir(parents=True)
        _write(checkpoint, imported, content, file.name)
        (checkpoint.parent / "latest").write_text(checkpoint.name + "\n", encoding="utf-8")
        write_yaml(imported.config, folder / "config.yaml")
    return _summary(imported, content)


def translated(content: FairseqFile, letters: Path | None = None) -> Imported:
    """Give everything in a file its place; arguments and errors as of ``import_fairseq``."""
    wrapper = wrapper_of(content.student)
    tensors, head_weights = unwrapped(content.student, wrapper) if wrapper else (content.student, {})
    tensors = current_names(tensors)
    modality = modality_of(tensors)
    cfg = pretraining_section(content.cfg, wrapper.config if wrapper else None)
    embedding = tensors.get("modality_encoders.TEXT.local_encoder.embed_tokens.weight")
    model = model_config(
        cfg,
        modality,
        fine_tuned=wrapper is not None,
        vocab_size=None if embedding is None else len(embedding),
        has_scale=any(name.endswith("alibi_scale") for name in tensors),
    )
    student = mapped(tensors, model, "encoder" if wrapper else "student")
    teacher = None if content.teacher is None or wrapper else mapped(current_names(content.teacher), model, "teacher")
    student.notes.extend(left_out(cfg, modality))
    head = _head(wrapper, content, head_weights, letters, model.encoder.dim) if wrapper else None
    return Imported(run_config(cfg, model), student, teacher, head, head_weights)


def _head(wrapper: Wrapper, content: FairseqFile, weights: dict[str, Tensor], letters: Path | None, dim: int) -> Head:
    facts = head_facts(wrapper, content.cfg, content.student)
    check_head(wrapper, facts["name"], weights, dim)
    labels: tuple[str, ...] = ()
    if wrapper.kind == "ctc":
        symbols = _symbols(letters) if letters else content.symbols
        if not symbols and len(weights["classifier.weight"]) == len(LIBRISPEECH):
            symbols = LIBRISPEECH
        if symbols and len(symbols) != len(weights["classifier.weight"]):
            where = str(letters) if letters else "its dictionary"
            raise RunError(f"{where} has {len(symbols)} letters, the head {len(weights['classifier.weight'])}")
        # fairseq's blank is number 0, <s>; tokenizers of transformers call the blank <pad>
        labels = tuple({"<s>": "<pad>", "<pad>": "<s>"}.get(symbol, symbol) for symbol in symbols)
    return Head(
        kind=wrapper.kind,
        num_outputs=len(weights["classifier.weight"]),
        labels=labels,
        **facts,
    )


def _symbols(path: Path) -> tuple[str, ...]:
    """fairseq's specials and the letters of a dictionary file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"--letters {path}: cannot be read ({error})") from error
    return (*_SPECIALS, *(line.rsplit(" ", 1)[0] for line in lines if line))


def _write(checkpoint: Path, imported: Imported, content: FairseqFile, name: str) -> None:
    model = imported.config.model
    (modality,) = model.modalities
    kinds = {"student": imported.student} | ({"teacher": imported.teacher} if imported.teacher else {})
    tensors = {
        f"{kind}/{ours}": flat(theirs, tensor, model)
        for kind, part in kinds.items()
        for ours, (theirs, tensor) in part.ours.items()
    }
    weights = checkpoint / "rank-00000.safetensors"
    save_file(tensors, weights)
    ranges = {key: (0, tensor.numel()) for key, tensor in tensors.items()}
    others = write_origin(checkpoint, _origin(imported, content, name))
    if imported.head is not None:
        others += write_head(
            checkpoint, imported.head, {name: weight.float() for name, weight in imported.head_weights.items()}
        )
    Manifest(
        step=content.num_updates,
        positions={modality: 0},
        adam_step=0,
        dp_size=1,
        tp_size=1,
        zero_stage=0,
        shapes={ours: tuple(tensor.shape) for ours, (_, tensor) in imported.student.ours.items()},
        files=[_record(weights, ranges), *(_record(path, {}) for path in others)],
        versions={"torch": torch.__version__},
    ).write(checkpoint)
    write_yaml(imported.config, checkpoint / "config.yaml")


def _origin(imported: Imported, content: FairseqFile, name: str) -> Origin:
    aside = dict(imported.student.aside)
    stored = dict(imported.student.ours.values())
    if imported.teacher is not None:
        aside |= {TEACHER + theirs: tensor for theirs, tensor in imported.teacher.aside.items()}
        stored |= {TEACHER + theirs: tensor for theirs, tensor in imported.teacher.ours.values()}
    stored |= {HEAD + ours: tensor for ours, tensor in imported.head_weights.items()}
    dtypes = {theirs: str(tensor.dtype).removeprefix("torch.") for theirs, tensor in stored.items()}
    return Origin(
        name=name,
        cfg=content.cfg,
        dtypes={theirs: dtype for theirs, dtype in dtypes.items() if dtype != "float32"},
        tensors=aside,
    )


def _record(path: Path, ranges: dict[str, tuple[int, int]]) -> FileRecord:
    return FileRecord(path.name, path.stat().st_size, file_sha256(path), ranges)


def _summary(imported: Imported, content: FairseqFile) -> str:
    (modality,) = imported.config.model.modalities
    student, teacher, head = imported.student, imported.teacher, imported.head
    parts = [f"{len(student.ours)} tensors of the {'encoder' if head else 'student'}"]
    if teacher is not None:
        parts.append(f"{len(teacher.ours)} of the teacher")
    if head is not None:
        parts.append(f"a head for {head.kind} with {head.num_outputs} outputs")
    kept = len(student.aside) + (len(teacher.aside) if teacher else 0)
    parts += [f"{kept} kept aside"] if kept else []
    parts += student.notes
    if teacher is None and head is None:
        parts.append("the file holds no teacher (_ema)")
    return f"{modality}, nearest recipe {imported.config.name}, step {content.num_updates:,}: {'; '.join(parts)}"
