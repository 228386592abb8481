"""``RunConfig``: one complete, validated description of a run; YAML round trip. No torch."""

import dataclasses
import difflib
import functools
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.atomic import replacing
from data_pipelines.config import AudioSourceConfig, DataConfig, ImageSourceConfig, TextSourceConfig
from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from pretrain.errors import RunError
from pretrain.sections import (
    CheckpointSection,
    EmaSection,
    HealthSection,
    LoggingSection,
    OptimSection,
    ParallelSection,
    PrecisionSection,
    ScheduleSection,
    TrainingSection,
)

if TYPE_CHECKING:
    import pydantic

RESUME_MAY_CHANGE = (
    "name",
    "data.path",
    *(f"data.{modality}.{field}" for modality in ("image", "audio", "text") for field in ("path", "microbatch_size")),
    "data.num_workers",
    "data.prefetch_batches",
    "data.max_bad_samples",
    "parallel",
    "checkpoint",
    "health",
    "logging",
    "training.max_steps",
    "training.microbatch_size",
)
"""Fields (or whole sections) that a resumed run may set anew; all others decide what is learned."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes, and how it reports."""

    name: str
    """Recipe that the run started from."""
    model: ModelConfig
    """The network and its objective."""
    data: DataConfig
    """Where samples come from."""
    optim: OptimSection = field(default_factory=OptimSection)
    """The optimizer."""
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    """The learning rate."""
    ema: EmaSection = field(default_factory=EmaSection)
    """The teacher."""
    precision: PrecisionSection = field(default_factory=PrecisionSection)
    """Precision of the networks."""
    parallel: ParallelSection = field(default_factory=ParallelSection)
    """Layout over the processes."""
    training: TrainingSection = field(default_factory=TrainingSection)
    """Length, batch, seed."""
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """When state is saved."""
    health: HealthSection = field(default_factory=HealthSection)
    """Collapse alarms."""
    logging: LoggingSection = field(default_factory=LoggingSection)
    """What is reported."""

    def __post_init__(self) -> None:
        modalities, sources = self.model.modalities, self.data.sources
        for name in modalities.keys() ^ sources.keys():
            has, lacks = ("model", "data") if name in modalities else ("data", "model")
            raise RunError(f"{lacks}.{name}: is null, but {has}.{name} is set; a run has both or neither")
        if self.model.image and self.data.image:
            _check_image(self.model.image, self.data.image)
        if self.model.audio and self.data.audio:
            _check_audio(self.model.audio, self.data.audio)
        if self.model.text and self.data.text:
            _check_text(self.model.text, self.data.text)

    def units_per_step(self, modality: str) -> int:
        """Units of a modality that one optimizer step takes over all ranks: samples, of audio planned batches."""
        return self.data.sources[modality].batch_size or self.training.global_batch_size

    def microbatches(self, modality: str, dp_size: int) -> tuple[int, int]:
        """Microbatch size and number of microbatches per step of one of ``dp_size`` ranks.

        Raises:
            RunError: if the batch does not divide.
        """
        source, batch = self.data.sources[modality], self.units_per_step(modality)
        field = "training.global_batch_size" if source.batch_size is None else f"data.{modality}.batch_size"
        per_rank, rest = divmod(batch, dp_size)
        if rest or per_rank < 1:
            raise RunError(f"{field}: {batch} is not divisible by the {dp_size} data-parallel ranks")
        whole_share = 1 if modality == "audio" else per_rank
        size = source.microbatch_size or self.training.microbatch_size or whole_share
        if per_rank % size:
            section = f"data.{modality}" if source.microbatch_size else "training"
            raise RunError(
                f"{section}.microbatch_size: {size} does not divide the {per_rank} samples per rank "
                f"({field.rpartition('.')[2]} {batch} / {dp_size} ranks)"
            )
        return size, per_rank // size


def _check_image(image: ImageConfig, source: ImageSourceConfig) -> None:
    if source.size != image.image_size:
        raise RunError(f"data.image.size: {source.size} differs from model.image.image_size {image.image_size}")
    if source.channels != image.in_channels:
        raise RunError(
            f"data.image.channels: {source.channels} differs from model.image.in_channels {image.in_channels}"
        )


def _check_audio(audio: AudioConfig, source: AudioSourceConfig) -> None:
    shortest = audio.num_frames(int(source.min_seconds * source.sample_rate))
    if not 0 < audio.mask.num_removed(shortest) < shortest:
        raise RunError(
            f"data.audio.min_seconds: {source.min_seconds} s are {shortest} frames, too few for model.audio.mask.prob "
            f"{audio.mask.prob} to remove some and keep some"
        )


def _check_text(text: TextConfig, source: TextSourceConfig) -> None:
    tokens = source.tokens_per_sample
    if tokens > text.max_positions:
        raise RunError(f"data.text.tokens_per_sample: {tokens} exceeds model.text.max_positions {text.max_positions}")
    if not 0 < text.mask.num_removed(tokens) < tokens:
        raise RunError(f"data.text.tokens_per_sample: of {tokens} tokens model.text.mask.prob removes all or none")


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML, fields in the order of the dataclasses."""
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def from_yaml(text: str, origin: str, base: RunConfig | None = None) -> RunConfig:
    """Read what ``to_yaml`` wrote, or a part of it that is laid over ``base``.

    Args:
        text: the YAML.
        origin: what to call it in an error, usually the file's path.
        base: supplies the fields that the YAML leaves out; without it none may be left out.
    Raises:
        RunError: naming ``origin`` and the field, for unknown or missing fields and wrong types.
    """
    import yaml

    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RunError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error
    values = _merge(_plain(dataclasses.asdict(base)) if base else {}, loaded, RunConfig, origin, "")
    return _validated(_complete(values, RunConfig, origin, ""), f"{origin}: ")


def with_overrides(config: RunConfig, arguments: list[str]) -> RunConfig:
    """Lay ``--section.field VALUE`` (or ``=VALUE``) pairs over a configuration; values are YAML scalars or lists.

    What goes together, such as data.audio.max_seconds and batch_seconds, is checked when all are laid.

    Raises:
        RunError: naming the argument or field, for unknown fields (with the nearest known one) and wrong values.
    """
    import yaml

    remaining, values = list(arguments), _plain(dataclasses.asdict(config))
    while remaining:
        flag = remaining.pop(0)
        name, equals, value = flag.partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise RunError(f"unexpected argument {flag!r}; fields are set with --section.field VALUE")
        if not equals:
            if not remaining:
                raise RunError(f"{name} needs a value")
            value = remaining.pop(0)
        try:
            override: Any = yaml.safe_load(value) if value else value
        except yaml.YAMLError as error:
            raise RunError(f"{name}: {value!r} is not a YAML value; quote it") from error
        fields = name[2:].replace("-", "_").split(".")
        _check_sections(values, fields, name, config.name)
        for part in reversed(fields):
            override = {part: override}
        values = _merge(values, override, RunConfig, name, "")
    return _validated(values, "") if arguments else config


def _check_sections(values: dict[str, Any], fields: list[str], name: str, recipe: str) -> None:
    """See that there is a section to set a field in: text has none in a recipe of images."""
    section: Any = values
    for number, part in enumerate(fields[:-1], 1):
        section = section.get(part, {}) if isinstance(section, dict) else {}
        if section is None:
            raise RunError(f"{name}: {recipe} has no {'.'.join(fields[:number])}")


def _validated(values: dict[str, Any], origin: str) -> RunConfig:
    import pydantic

    try:
        return _validator().validate_python(values)
    except pydantic.ValidationError as error:
        raise RunError(f"{origin}{_problem(error.errors()[0])}") from error


@functools.cache
def _validator() -> "pydantic.TypeAdapter[RunConfig]":
    """Made once: it takes 10 ms to make."""
    import pydantic

    return pydantic.TypeAdapter(RunConfig)


def _problem(error: Any) -> str:
    """What pydantic found, as ``section.field: what is wrong``; our own checks may have named the field already."""
    where, ours = ".".join(map(str, error["loc"])), error.get("ctx", {}).get("error")
    if ours is None:
        return f"{where}: {error['msg']}, got {error['input']!r}"
    return str(ours) if str(ours).startswith(where) else f"{where}.{ours}"


def write_yaml(config: RunConfig, path: Path) -> None:
    """Write ``to_yaml`` atomically."""
    with replacing(path) as stream:
        stream.write(to_yaml(config).encode())


def differences(saved: RunConfig, current: RunConfig, ignore: tuple[str, ...] = ()) -> list[str]:
    """Fields in which two configurations differ, as ``section.field: saved -> current``."""
    before, after = _flatten(dataclasses.asdict(saved)), _flatten(dataclasses.asdict(current))
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in before | after
        if before.get(name) != after.get(name)
        and not any(name == prefix or name.startswith(prefix + ".") for prefix in ignore)
    ]


def _plain(value: Any) -> Any:
    """Tuples become lists, so that YAML's safe subset can hold them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _section_type(parent: type, name: str) -> type | None:
    """The dataclass behind a field, also behind ``Section | None``."""
    hint = typing.get_type_hints(parent)[name]
    return next((t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), None)  # type: ignore[return-value]


def _merge(base: dict[str, Any], over: Any, kind: type, origin: str, path: str) -> dict[str, Any]:
    if not isinstance(over, dict):
        raise RunError(f"{origin}: {path.rstrip('.') or 'config'}: expected fields, got {over!r}")
    known = [item.name for item in dataclasses.fields(kind)]
    merged = dict(base)
    for key, value in over.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {path}{close[0]}?" if close else f"; known fields: {', '.join(known)}"
            raise RunError(f"{origin}: unknown field {path}{key}{hint}")
        section = _section_type(kind, key)
        if section and value is not None:
            merged[key] = _merge(base.get(key) or {}, value, section, origin, f"{path}{key}.")
        else:
            merged[key] = value
    return merged


def _complete(values: dict[str, Any], kind: type, origin: str, path: str) -> dict[str, Any]:
    for item in dataclasses.fields(kind):
        if item.name not in values:
            raise RunError(f"{origin}: field {path}{item.name} is missing")
        section = _section_type(kind, item.name)
        if section and values[item.name] is not None:
            _complete(values[item.name], section, origin, f"{path}{item.name}.")
    return values
