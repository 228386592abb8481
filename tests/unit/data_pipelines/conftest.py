from pathlib import Path
from typing import NamedTuple

import pytest

from data_pipelines.shards.writer import Stored
from tests.unit.data_pipelines.photographs import write_shards


class Dataset(NamedTuple):
    """A folder of three shards and what was written into them."""

    folder: Path
    samples: list[Stored]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Free to be damaged."""
    folder = tmp_path / "shards"
    return Dataset(folder, write_shards(folder))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Shared; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "shards"
    return Dataset(folder, write_shards(folder))
