"""What one step of a run works on, for cutting and planning. No torch."""

import functools

from data_pipelines.config import DataConfig
from model.config import ModelConfig
from pretrain.config import RunConfig
from pretrain.parallel.stages import Work, stages_of


def typical_work(config: RunConfig) -> dict[str, Work]:
    """What a step takes of each modality; audio as recordings of the greatest length, which fill its batches."""
    return dict(_works(config.model, config.data, config.training.global_batch_size))


def stages_of_run(config: RunConfig, *, pp_size: int, tp_size: int) -> list[range]:
    """Numbers of the shared blocks of every stage of a run's pipeline."""
    return list(_stages(config.model, config.data, config.training.global_batch_size, pp_size, tp_size))


@functools.cache  # plans ask for the same ones thousands of times
def _works(model: ModelConfig, data: DataConfig, global_batch_size: int) -> dict[str, Work]:
    work = {name: Work(source.batch_size or global_batch_size, 0) for name, source in data.sources.items()}
    if model.image is not None:
        work["image"] = work["image"]._replace(length=model.image.image_size)
    if data.audio is not None:
        recordings = work["audio"].num_samples * data.audio.batch_seconds / data.audio.max_seconds
        work["audio"] = Work(recordings, int(data.audio.max_seconds * data.audio.sample_rate))
    if data.text is not None:
        work["text"] = work["text"]._replace(length=data.text.tokens_per_sample)
    return work


@functools.cache
def _stages(model: ModelConfig, data: DataConfig, global_batch_size: int, pp_size: int, tp_size: int) -> list[range]:
    return stages_of(model, _works(model, data, global_batch_size), pp_size=pp_size, tp_size=tp_size)
