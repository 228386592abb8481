"""Fixtures that several packages' tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deploy.cli import main


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ``d2v prepare digits``: folders pretrain, bank and test."""
    out = tmp_path_factory.mktemp("digits")
    sizes = ["--pretrain", "256", "--bank", "128", "--test", "64", "--workers", "1"]
    assert main(["prepare", "digits", str(out), *sizes]) == 0
    return out


@pytest.fixture(scope="session")
def digit_shards(digits: Path) -> Path:
    """256 pages of digits without labels."""
    return digits / "pretrain"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The machine's cores belong to tests that start several processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
