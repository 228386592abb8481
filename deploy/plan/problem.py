"""What a search is asked, and why layouts are not legal. No torch."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from deploy.plan.engine import Engine
from deploy.plan.hardware import Cluster
from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.sections import ParallelSection


@dataclass(frozen=True)
class Problem:
    """What is looked for."""

    config: RunConfig
    """The recipe as it was changed; its own layout does not matter but for ``pinned``."""
    cluster: Cluster
    """Where it shall run."""
    recipe: RunConfig
    """As it is published, whatever ``config`` is called."""
    user: dict[str, Any] = field(default_factory=dict)
    """A user's DeepSpeed JSON, from ``read_user_json``."""
    pinned: frozenset[str] = frozenset()
    """Fields of ``config.parallel`` that every layout has to keep."""

    @cached_property
    def engine(self) -> Engine:
        """DeepSpeed's settings."""
        return Engine.of(self.user)


@dataclass(frozen=True)
class Refusal:
    """A layout that is not legal."""

    section: ParallelSection
    reason: str
    microbatch_size: int | None = None
    """Given where it matters."""


class Refusals:
    """Those of a search: a layout is counted once for the same reason, whatever the microbatch."""

    def __init__(self) -> None:
        """None yet."""
        self._found: dict[tuple[ParallelSection, str], Refusal] = {}

    def add(self, section: ParallelSection, error: RunError, microbatch_size: int | None = None) -> None:
        """Note why a layout is refused."""
        reason = str(error)
        self._found.setdefault((section, reason), Refusal(section, reason, microbatch_size))

    def all(self) -> list[Refusal]:
        """In the order in which they were met."""
        return list(self._found.values())
