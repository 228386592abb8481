"""Waveforms of recordings: what the teacher hears, then views of it whose removed stretches are covered."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_pipelines.config import AudioSourceConfig
from deploy.preview.drawing import FAINT, INK, MARGIN, NUM_VIEWS, REMOVED, caption, new_sheet
from deploy.preview.samples import Shown
from model.config import AudioConfig
from pretrain.config import RunConfig

TRANSCRIPT = "txt"
"""Member of a sample with the words that are spoken."""
_WIDTH = 1400
_GUTTER = 64  # pixels left of the plots, for the names of their rows
_CAPTION, _WAVE, _BAND, _BAND_GAP, _TICKS, _SPACE = 24, 72, 26, 6, 24, 20  # heights in pixels, from top to bottom
_PLOT = _WAVE + NUM_VIEWS * (_BAND_GAP + _BAND)
_ROW = _CAPTION + _PLOT + _TICKS + _SPACE
_DPI = 100


class Scale(NamedTuple):
    """Where tokens lie in time."""

    seconds_per_token: float
    first_token_seconds: float
    """Start of the stretch of the first token: stretches are centred on what their token sees."""

    def stretches(self, removed: NDArray[np.bool_]) -> list[tuple[float, float]]:
        """(T,) -> start and length in seconds of every run of removed tokens."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], removed, [False]]).astype(np.int8)))
        seconds = self.first_token_seconds + self.seconds_per_token * edges.reshape(-1, 2)
        return [(float(start), float(end - start)) for start, end in seconds]


def scale_of(model: AudioConfig, source: AudioSourceConfig) -> Scale:
    """Args: the frontend's convolutions, and the sample rate that they see."""
    hop = math.prod(stride for _, _, stride in model.conv_layers)
    offset = (model.receptive_field - hop) / 2
    return Scale(hop / source.sample_rate, offset / source.sample_rate)


def draw_audio(config: RunConfig, path: str, samples: Sequence[Shown]) -> Image.Image:
    """Args: the recipe, where the samples are from, the samples."""
    assert config.model.audio is not None
    assert config.data.audio is not None
    scale, rate = scale_of(config.model.audio, config.data.audio), config.data.audio.sample_rate
    sheet, begin = new_sheet(_WIDTH, len(samples) * _ROW - _SPACE, *_titles(config, path, samples))
    canvas = ImageDraw.Draw(sheet)
    for number, shown in enumerate(samples):
        top = begin + number * _ROW
        waveform = shown.source[: _num_samples(shown, config.model.audio)].astype(np.float32)
        remark = " ".join(shown.stored.members.get(TRANSCRIPT, b"").decode("utf-8", "replace").split())
        caption(canvas, MARGIN, top, _WIDTH - 2 * MARGIN, shown.stored.key, remark)
        sheet.paste(_plot(waveform, rate, shown.mask[:NUM_VIEWS, : shown.num_tokens], scale), (0, top + _CAPTION))
    return sheet


def _num_samples(shown: Shown, model: AudioConfig) -> int:
    """Waveform samples that are no padding: a padded row is zero behind its end."""
    if shown.num_tokens == shown.mask.shape[1]:
        return len(shown.source)
    return int(np.flatnonzero(shown.source)[-1]) + 1


def _titles(config: RunConfig, path: str, samples: Sequence[Shown]) -> tuple[str, str]:
    assert config.model.audio is not None
    shares = [shown.mask[:, : shown.num_tokens].mean() for shown in samples]
    return (
        f"{config.name} on {path}",
        f"the first {len(samples)} recordings of a run: the crop the teacher hears, then {NUM_VIEWS} of "
        f"{config.model.audio.num_views} views that the student hears; grey is removed, "
        f"{100 * float(np.mean(shares)):.0f} % of all tokens",
    )


def _plot(waveform: NDArray[np.float32], rate: int, mask: NDArray[np.bool_], scale: Scale) -> Image.Image:
    """One sample; everything on one axis of seconds, heights in pixels."""
    height = _PLOT + _TICKS
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    width = _WIDTH - 2 * MARGIN - _GUTTER
    axes = figure.add_axes(((MARGIN + _GUTTER) / _WIDTH, _TICKS / height, width / _WIDTH, _PLOT / height))
    axes.set_xlim(0, len(waveform) / rate)
    axes.set_ylim(_PLOT, 0)
    low, high = _envelope(waveform, width)
    middles = [_WAVE / 2, *(_WAVE + _BAND_GAP + _BAND / 2 + view * (_BAND + _BAND_GAP) for view in range(NUM_VIEWS))]
    for middle, size in zip(middles, [_WAVE, *[_BAND] * NUM_VIEWS], strict=True):
        seconds = np.linspace(0, len(waveform) / rate, len(low))
        axes.fill_between(seconds, middle - high * size / 2, middle - low * size / 2, color=_colour(INK), linewidth=0.4)
    for middle, view in zip(middles[1:], mask, strict=True):
        axes.broken_barh(
            scale.stretches(view), (middle - _BAND / 2, _BAND), color=_colour(REMOVED), linewidth=0, zorder=3, aa=False
        )
    _style(axes, middles)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _envelope(waveform: NDArray[np.float32], width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and greatest value of every pixel column, as a share of the greatest of all."""
    peak = max(float(np.abs(waveform).max()), 1e-12)
    columns = np.array_split(waveform / peak, min(width, len(waveform)))
    return np.array([column.min() for column in columns]), np.array([column.max() for column in columns])


def _style(axes: Axes, middles: Sequence[float]) -> None:
    axes.set_yticks(middles, ["crop", *(f"view {number}" for number in range(1, NUM_VIEWS + 1))])
    axes.tick_params(axis="both", length=0, labelsize=8, labelcolor=_colour(FAINT), pad=6)
    axes.tick_params(axis="x", length=3, color=_colour(FAINT), pad=2)
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g} s")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_colour(REMOVED))


def _colour(colour: tuple[int, int, int]) -> str:
    """As matplotlib wants it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
