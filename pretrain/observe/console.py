"""What a person reads while a run goes on: one line per report, under it a progress bar on a terminal."""

import sys
from typing import Any


def train_line(metrics: dict[str, Any]) -> str:
    """A log interval: loss and its terms, then what tells whether the run is well, then how fast it is."""
    losses = [name for name in metrics if name.startswith("loss_")]
    # of a run of several modalities their sums, else the terms
    shown = [name for name in losses if not any(name.startswith(f"{other}_") for other in losses)]
    terms = ", ".join(f"{name.removeprefix('loss_')} {metrics[name]:.4f}" for name in shown)
    prefixes = [name.removesuffix("target_spread") for name in metrics if name.endswith("target_spread")]
    spreads = "; ".join(
        f"{prefix.replace('_', ' ')}targets {metrics[f'{prefix}target_spread']:.3f}, "
        f"predictions {metrics[f'{prefix}prediction_spread']:.3f}"
        for prefix in prefixes
    )
    return (
        f"loss {metrics['loss']:8.4f} ({terms})"
        f"  lr {metrics['lr']:.2e}  grad {metrics['grad_norm']:7.3f}  ema {metrics['ema_decay']:.6f}"
        f"  spread of {spreads}"
        f"  {speed(metrics)}  {metrics['tflops_per_second']:8.3g} TFLOP/s"
        f"  {metrics['memory_gib']:6.2f} GiB  wait {100 * metrics['data_wait_share']:3.0f} %"
        f"  eta {duration(metrics['eta_seconds'])}"
    )


def speed(metrics: dict[str, Any]) -> str:
    """Images, seconds of audio, tokens of text per second: what the run has."""
    shown = {"images": "images/s", "audio_seconds": "s of audio/s", "text_tokens": "tokens/s"}
    found = [
        f"{metrics[f'{name}_per_second']:7.1f} {unit}"
        for name, unit in shown.items()
        if f"{name}_per_second" in metrics
    ]
    return ", ".join(found)


def health_line(figures: dict[str, Any]) -> str:
    """Effective rank and spread of the features, by whose they are."""
    parts = []
    for suffix, title in (("_effective_rank", "effective rank"), ("_spread", "spread")):
        named = [f"{name.removesuffix(suffix)} {figures[name]:.3g}" for name in figures if name.endswith(suffix)]
        parts.append(f"{title}: {', '.join(named)}")
    return "  ".join(parts)


def event_line(name: str, message: str) -> str:
    """Something that happens once; an alarm catches the eye."""
    return f"{'!!! ALARM' if name == 'alarm' else name}  {message}"


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
            postfix = f"loss {metrics['loss']:.3f}, {speed(metrics).strip()}"
            self._bar.set_postfix_str(postfix, refresh=False)
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
