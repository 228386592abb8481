"""Batches of masked blocks of tokens."""

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.batches.base import Batch, Masking, kept_per_view
from data_pipelines.batches.samples import load_samples
from data_pipelines.config import TextSourceConfig
from data_pipelines.errors import DataError
from data_pipelines.reader import Reader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.tokenizers.base import PADDING
from data_pipelines.tokenizers.load import stored_vocab_size
from data_pipelines.transforms.text import load_tokens, token_member


class TextBatches:
    """Positions count samples (see ``BatchSource``).

    Masks are made for the whole length, padding or not, but spans stop at the end of a block, as in the reference.
    """

    def __init__(self, reader: Reader, config: TextSourceConfig, seed: int, masking: Masking) -> None:
        """Args: the open shards, the length of a sample, the run's seed, and who makes masks.

        Raises:
            DataError: if the folder was prepared with shorter blocks, or its tokenizer is damaged.
        """
        self._reader = reader
        self._config = config
        self._seed = seed
        self._masking = masking
        self._vocab_size = stored_vocab_size(reader.shards[0].parent)
        _check_length(reader, config)

    def batch(self, start: int, size: int) -> Batch:
        """The samples at ``size`` positions from ``start`` on.

        Raises:
            DataError: if a sample and all its substitutes are unusable.
        """
        loaded = load_samples(self._tokens, start=start, size=size, num_samples=len(self._reader), seed=self._seed)
        source = torch.from_numpy(np.stack(loaded.contents))
        padding = source == PADDING
        mask = self._masking.masks(loaded.mask_keys, (~padding).sum(dim=1).tolist(), source.shape[1])
        return Batch(
            modality="text",
            position=start,
            source=source,
            mask=mask,
            num_kept=kept_per_view(mask),
            padding=padding if padding.any() else None,
            sample=torch.from_numpy(loaded.sample),
            epoch=torch.from_numpy(loaded.epoch),
            rejected=loaded.rejected,
        )

    def _tokens(self, sample: int, epoch: int) -> NDArray[np.int64]:
        """A block, the same in every epoch."""
        data = self._reader.read(sample, token_member).content
        try:
            return load_tokens(data, self._config, self._vocab_size)
        except DataError as error:
            raise DataError(f"{self._reader.describe(sample)}: {error}") from error


def _check_length(reader: Reader, config: TextSourceConfig) -> None:
    """Refuse shards of shorter blocks: every sample would be padded.

    At most one block of a shard is not full, and all full ones are equally long.
    """
    manifest = read_manifest(reader.shards[0].parent)
    if manifest is None or "tokens" not in manifest.amounts or manifest.num_samples <= len(manifest.shards):
        return
    longest = int(manifest.amounts["tokens"] / (manifest.num_samples - len(manifest.shards)))
    wanted = config.tokens_per_sample
    if longest < wanted:
        raise DataError(
            f"data.text.tokens_per_sample: is {wanted}, but blocks in {reader.path} have {longest} tokens at most; "
            f"set it to theirs, or prepare the text again with --tokens-per-sample {wanted}"
        )
