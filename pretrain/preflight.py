"""What can be seen to be wrong before a weight is allocated, on a login node before GPUs are taken. No torch."""

from data_pipelines.reader import Reader
from data_pipelines.shards.paths import expand_path
from data_pipelines.tokenizers.load import stored_vocab_size
from pretrain.config import RunConfig
from pretrain.errors import RunError


def check_data(config: RunConfig) -> None:
    """See that the shards of every modality are there with their index, and that the model knows their tokens.

    Raises:
        DataError, RunError: if not.
    """
    check_vocabulary(config)
    for modality in config.model.modalities:
        Reader(config.data.path_of(modality)).close()


def check_scales(config: RunConfig) -> None:
    """See that every parameter of the teacher is one that the optimizer trains: its shards follow that one's.

    Raises:
        RunError: for a fixed scale of ALiBi, which no released recipe has.
    """
    for name, side in config.model.modalities.items():
        if side.alibi is not None and not side.alibi.learned:
            raise RunError(f"model.{name}.alibi.learned: a fixed scale cannot be trained with; set it to true")


def check_vocabulary(config: RunConfig) -> None:
    """See that the model knows every token of the tokenizer that prepared its text.

    Raises:
        RunError: if not; DataError if there are no shards.
    """
    if config.model.text is None:
        return
    path = config.data.path_of("text")
    known, used = config.model.text.vocab_size, stored_vocab_size(expand_path(path)[0].parent)
    if used is not None and used > known:
        raise RunError(
            f"model.text.vocab_size: {known:,} is less than the {used:,} tokens of the tokenizer in {path}; "
            f"set --model.text.vocab-size {used}"
        )
