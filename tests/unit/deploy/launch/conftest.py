"""A configuration that can be launched."""

from pathlib import Path

import pytest


@pytest.fixture
def asked(digit_shards: Path) -> list[str]:
    """Recipe and overrides of a run that is right."""
    return ["image-tiny", "--data.path", str(digit_shards), "--training.global-batch-size", "8"]
