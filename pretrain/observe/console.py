"""One readable line per log interval; a progress bar on a terminal."""

import sys
from typing import Any


def line(metrics: dict[str, Any], total_steps: int) -> str:
    """A log line: step, loss and its terms, then what tells whether the run is well and how fast it is."""
    terms = "".join(f" {name.removeprefix('loss_')} {metrics[name]:.3f}" for name in metrics if name.startswith("loss_"))
    width = len(str(total_steps))
    return (
        f"step {metrics['step']:>{width}}/{total_steps}  loss {metrics['loss']:8.4f}{terms}"
        f"  lr {metrics['lr']:.2e}  grad {metrics['grad_norm']:7.3f}  ema {metrics['ema_decay']:.6f}"
        f"  spread {metrics['target_spread']:.2f}/{metrics['prediction_spread']:.2f}"
        f"  {metrics['samples_per_second']:7.1f} images/s  {metrics['tflops_per_second']:.3g} TFLOP/s"
        f"  {metrics['memory_gib']:.2f} GiB  wait {100 * metrics['data_wait_share']:.0f} %"
        f"  eta {duration(metrics['eta_seconds'])}"
    )


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, with days where there are any."""
    days, rest = divmod(round(seconds), 86_400)
    text = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}d {text}" if days else text


class Console:
    """Standard error: a progress bar with lines above it on a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int, first_step: int) -> None:
        """Args: length of the run, step it starts from."""
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)

    def progress(self, metrics: dict[str, Any]) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {metrics['samples_per_second']:.0f} images/s")
            self._bar.update(metrics["step"] - self._bar.n)

    def write(self, text: str) -> None:
        """Print one line."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
