"""What one step of a run works on, for cutting and planning. No torch."""

from pretrain.config import RunConfig
from pretrain.parallel.stages import Work, stages_of


def typical_work(config: RunConfig) -> dict[str, Work]:
    """What a step takes of each modality; audio as recordings of the greatest length, which fill its batches."""
    work = {name: Work(config.units_per_step(name), 0) for name in config.model.modalities}
    if config.model.image is not None:
        work["image"] = work["image"]._replace(length=config.model.image.image_size)
    if config.data.audio is not None:
        audio = config.data.audio
        recordings = work["audio"].num_samples * audio.batch_seconds / audio.max_seconds
        work["audio"] = Work(recordings, int(audio.max_seconds * audio.sample_rate))
    if config.data.text is not None:
        work["text"] = work["text"]._replace(length=config.data.text.tokens_per_sample)
    return work


def stages_of_run(config: RunConfig, *, pp_size: int, tp_size: int) -> list[range]:
    """Numbers of the shared blocks of every stage of a run's pipeline."""
    return stages_of(config.model, typical_work(config), pp_size=pp_size, tp_size=tp_size)
