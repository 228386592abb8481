"""A fairseq configuration as one of ours: the nearest recipe with fairseq's values laid over it."""

import ast
import dataclasses
from collections.abc import Callable
from typing import Any

from data_pipelines.config import AudioSourceConfig, DataConfig, ImageSourceConfig, TextSourceConfig
from deploy.export.fairseq_config import model_config_from_fairseq, training_only
from deploy.export.fairseq_options import completed
from model.accounting import num_parameters
from model.config import AudioConfig, ImageConfig, ModelConfig, TextConfig
from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.recipes.registry import RECIPES

_SPEECH_MASK = {"mask_prob": 0.5, "mask_prob_adjust": 0.05, "mask_length": 5}
"""Of base audio: CTC fine-tuning overwrites the masks of pretraining with its own."""


def pretraining_section(cfg: dict[str, Any], place: str | None) -> dict[str, Any]:
    """The whole configuration of the pretraining.

    Args:
        cfg: of the file.
        place: where in its ``model`` a fine-tuned file keeps it; None for a pretrained one.
    Raises:
        RunError: if it is not there.
    """
    whole = cfg if place is None else cfg["model"].get(place)
    if not isinstance(whole, dict) or not isinstance(whole.get("model"), dict):
        raise RunError(f"cfg.model.{place} does not hold the configuration of the pretraining")
    return whole


def model_config(
    cfg: dict[str, Any], modality: str, *, fine_tuned: bool, vocab_size: int | None, has_scale: bool
) -> ModelConfig:
    """The model of one modality.

    Args:
        cfg: the whole configuration of its pretraining.
        modality: that it has.
        fine_tuned: whether options of a fine-tuning lie over it.
        vocab_size: rows of the embedding table of a text model.
        has_scale: whether there is a scale of distances; fine-tuning marks it as fixed, pretraining trains it.
    Raises:
        RunError, ConfigError: for an option that our model does not have; names it and its value.
    """
    try:
        section = completed(cfg["model"])
        section["supported_modality"] = modality.upper()
        side = section["modalities"][modality]
        if fine_tuned:
            side.update(_SPEECH_MASK if modality == "audio" else {})
            side["learned_alibi_scale"] = side["learned_alibi_scale"] or has_scale
        rows = int((cfg.get("dataset") or {}).get("batch_size") or 0) * section["clone_batch"]
        return model_config_from_fairseq(section, cls_rows=rows or 256, vocab_size=vocab_size)
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(f"cfg.model is not that of a data2vec 2.0 model ({type(error).__name__}: {error})") from error


def left_out(cfg: dict[str, Any], modality: str) -> list[str]:
    """What there is to say of options that ``model_config`` passes over."""
    options = training_only(completed(cfg["model"]) | {"supported_modality": modality.upper()})
    return [f"left out {', '.join(options)}, which only training reads"] if options else []


def run_config(cfg: dict[str, Any], model: ModelConfig) -> RunConfig:
    """The configuration of the run that made a model.

    What fairseq does not tell, or another release would tell otherwise, is the nearest recipe's.

    Args:
        cfg: the whole configuration of the pretraining.
        model: ours.
    Raises:
        RunError: if the parts do not fit each other.
    """
    base = nearest_recipe(model)
    options, optimizer, schedule = _section(cfg, "optimization"), _adam(cfg), _section(cfg, "lr_scheduler")
    section = cfg["model"]
    return dataclasses.replace(
        base,
        model=model,
        data=_data(base, cfg, model),
        optim=_laid_over(
            base.optim,
            lr=_first(optimizer.get("lr_float") or options.get("lr"), float),
            betas=_pair(optimizer.get("adam_betas")),
            eps=_first(optimizer.get("adam_eps"), float),
            weight_decay=_first(optimizer.get("weight_decay"), float),
            clip_norm=_first(options.get("clip_norm"), float),
        ),
        schedule=_laid_over(
            base.schedule,
            warmup_steps=_first((optimizer.get("lr_scheduler") or schedule).get("warmup_updates"), int),
        ),
        ema=_laid_over(
            base.ema,
            start=_first(section.get("ema_decay"), float),
            end=_first(section.get("ema_end_decay"), float),
            anneal_steps=_first(section.get("ema_anneal_end_step"), int),
        ),
        training=_laid_over(
            base.training,
            max_steps=_first(options.get("max_update") or section.get("max_update"), int),
            global_batch_size=_global_batch(cfg),
            seed=_first(_section(cfg, "common").get("seed"), int),
        ),
    )


def nearest_recipe(model: ModelConfig) -> RunConfig:
    """The recipe of the same modality whose model has most nearly as many parameters; of equals the same model's."""
    recipes = [make() for make in RECIPES.values()]
    same = [recipe for recipe in recipes if recipe.model.modalities.keys() == model.modalities.keys()]
    size = num_parameters(model)
    return min(same, key=lambda recipe: (abs(num_parameters(recipe.model) / size - 1), recipe.model != model))


def _data(base: RunConfig, cfg: dict[str, Any], model: ModelConfig) -> DataConfig:
    ((modality, side),) = model.modalities.items()
    source, task, dataset = base.data.sources[modality], _section(cfg, "task"), _section(cfg, "dataset")
    if isinstance(source, ImageSourceConfig) and isinstance(side, ImageConfig):
        reference = ImageSourceConfig()
        colours = slice(side.in_channels)
        source = dataclasses.replace(
            reference,
            size=side.image_size,
            channels=side.in_channels,
            mean=reference.mean[colours],
            std=reference.std[colours],
        )
    elif isinstance(source, AudioSourceConfig) and isinstance(side, AudioConfig):
        rate = _first(task.get("sample_rate"), int) or source.sample_rate
        samples = {
            "min_seconds": task.get("min_sample_size"),
            "max_seconds": task.get("max_sample_size"),
            "batch_seconds": dataset.get("max_tokens"),
        }
        source = _laid_over(
            source,
            sample_rate=rate,
            normalize=task.get("normalize"),
            **{name: int(value) / rate if value else None for name, value in samples.items()},
        )
    elif isinstance(source, TextSourceConfig) and isinstance(side, TextConfig):
        tokens = _first(task.get("tokens_per_sample"), int) or source.tokens_per_sample
        source = dataclasses.replace(source, tokens_per_sample=min(tokens, side.max_positions))
    return dataclasses.replace(base.data, **{modality: source})  # type: ignore[arg-type]


def _global_batch(cfg: dict[str, Any]) -> int | None:
    """Units of one step: samples; of audio, batches of ``max_tokens``."""
    dataset = _section(cfg, "dataset")
    processes = _first(_section(cfg, "distributed_training").get("distributed_world_size"), int)
    per_process = _first(dataset.get("batch_size"), int) or (1 if dataset.get("max_tokens") else None)
    repeats = _first(_section(cfg, "optimization").get("update_freq"), int) or 1
    return processes * per_process * repeats if processes and per_process else None


def _adam(cfg: dict[str, Any]) -> dict[str, Any]:
    """Options of Adam; a composite optimizer has them per group, and all of its groups have the same."""
    optimizer = _section(cfg, "optimizer")
    groups = optimizer.get("groups")
    if not isinstance(groups, dict) or not groups:
        return optimizer
    group = groups.get("default") or next(iter(groups.values()))
    return group | (group.get("optimizer") or {})


def _section(cfg: dict[str, Any], name: str) -> dict[str, Any]:
    section = cfg.get(name)
    return section if isinstance(section, dict) else {}


def _first(value: Any, kind: Callable[[Any], Any]) -> Any:
    """A number, or the first of a list of them; None if there is none."""
    value = value[0] if isinstance(value, list) and value else value
    return kind(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _pair(value: Any) -> tuple[float, float] | None:
    """Adam's decay rates, which fairseq writes as text: ``(0.9,0.98)``."""
    try:
        first, second = ast.literal_eval(value) if isinstance(value, str) else value
        return float(first), float(second)
    except (SyntaxError, TypeError, ValueError):
        return None


def _laid_over(section: Any, **values: Any) -> Any:
    """A section with the values that are known."""
    return dataclasses.replace(section, **{name: value for name, value in values.items() if value is not None})
