"""How far a long command is: a bar on a terminal, a plain line now and then otherwise."""

import sys
import time
from types import TracebackType
from typing import Self

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """``with Progress("verify", total, "B") as progress: progress(done)``."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        """Args: what is done, how much there is of it, its unit ("B" is shown in binary multiples)."""
        self._title = title
        self._total = total
        self._unit = unit
        self._started = self._last_line = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            in_bytes = unit == "B"
            self._bar = tqdm(
                desc=title, total=total, unit="B" if in_bytes else f" {unit}", unit_scale=in_bytes, unit_divisor=1024
            )

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int) -> None:
        """Show that ``done`` of the total are finished."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = done / (now - self._started)
            left = f", {(self._total - done) / rate:,.0f} s left" if rate else ""
            print(f"{self._title}: {self._amounts(done)}{left}", file=sys.stderr, flush=True)

    def _amounts(self, done: int) -> str:
        share = f"({100 * done / max(1, self._total):.0f} %)"
        if self._unit == "B":
            return f"{readable_bytes(done)} of {readable_bytes(self._total)} {share}"
        return f"{done:,} of {self._total:,} {self._unit} {share}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def readable_bytes(amount: float) -> str:
    """12.3 MiB."""
    for prefix in ("", "Ki", "Mi", "Gi"):
        if amount < 1024:
            return f"{amount:.{1 if prefix else 0}f} {prefix}B"
        amount /= 1024
    return f"{amount:.1f} TiB"


def counted(amount: int, noun: str) -> str:
    """1 shard, 2 shards, 0 classes."""
    return f"{amount:,} {noun}{'' if amount == 1 else 'es' if noun.endswith('s') else 's'}"
