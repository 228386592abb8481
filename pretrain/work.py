"""What one step of a run works on, for cutting and planning. No torch."""

import functools

from data_pipelines.config import DataConfig
from model.config import ModelConfig
from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.parallel.grid import Grid
from pretrain.parallel.stages import Work, stages_of


def typical_work(config: RunConfig) -> dict[str, Work]:
    """What a step takes of each modality; audio as recordings of the greatest length, which fill its batches."""
    return dict(_works(config.model, config.data, config.training.global_batch_size))


def stages_of_run(config: RunConfig, *, pp_size: int) -> list[range]:
    """Numbers of the shared blocks of every stage of a run's pipeline."""
    return list(_stages(config.model, config.data, config.training.global_batch_size, pp_size))


def check_rows(config: RunConfig, grid: Grid) -> None:
    """See that sequence parallelism can split the rows of every microbatch evenly.

    Raises:
        RunError: if it cannot; names the nearest ``parallel.tp_size`` that does.
    """
    if not config.parallel.sequence_parallel:
        return
    for name, side in config.model.modalities.items():
        size, _ = config.microbatches(name, grid.dp_size)
        samples = 1 if name == "audio" else size  # how many recordings a batch holds is not known
        rows = samples * side.num_views
        if rows % grid.tp_size == 0:
            continue
        what = (
            f"{samples} samples x {side.num_views} views" if samples > 1 else f"the {side.num_views} views of a sample"
        )
        smaller = [other for other in range(2, grid.tp_size) if grid.tp_size % other == 0 and rows % other == 0]
        fix = f"the nearest that does is {smaller[-1]}" if smaller else "without sequence_parallel any number will do"
        raise RunError(
            f"parallel.tp_size: {grid.tp_size} does not divide the {rows} rows of a microbatch of {name} ({what}), as "
            f"parallel.sequence_parallel needs; {fix}"
        )


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
def _stages(model: ModelConfig, data: DataConfig, global_batch_size: int, pp_size: int) -> list[range]:
    return stages_of(model, _works(model, data, global_batch_size), pp_size=pp_size)
