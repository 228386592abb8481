import base64
import re
from pathlib import Path

import pytest

from deploy.report_figures import draw, panels
from deploy.report_history import History
from deploy.report_page import render, status
from pretrain.evaluate.comparison import Comparison
from pretrain.recipes.tiny import image_tiny

TRAIN = {
    "loss_regression": 1.5,
    "loss": 2.0,
    "lr": 1e-3,
    "grad_norm": 0.5,
    "ema_decay": 0.99,
    "target_spread": 0.9,
    "prediction_spread": 0.4,
    "samples_per_second": 100.0,
    "tflops_per_second": 0.25,
    "memory_gib": 0.5,
    "data_wait_share": 0.01,
}
HEALTH = {f"{part}_{kind}": 3.0 for part in ("student", "teacher", "frontend") for kind in ("effective_rank", "spread")}
TITLES = {
    "Loss",
    "Schedules",
    "Gradient norm",
    "Spread of targets and predictions",
    "Effective rank",
    "Spread of features",
    "Throughput",
    "Memory",
    "Waiting for data",
}


@pytest.fixture
def history() -> History:
    events = [
        {"step": 0, "event": "start", "message": "image-tiny on 2 x cpu", "time": 1.7e9},
        {"step": 15, "event": "alarm", "message": "<script>alert(1)</script>", "time": 1.7e9 + 5},
    ]
    train = [{"step": step, "time": 1.7e9 + step, **TRAIN} for step in (10, 20, 30)]
    return History(train=train, health=[{"step": 20, **HEALTH}], events=events, duration_seconds=3725.0)


def test_page_holds_everything_itself(history: History) -> None:
    comparison = Comparison(
        protocol="knn",
        title="k nearest neighbours",
        settings={},
        checkpoint="c",
        step=30,
        source="student",
        bank="b",
        test="t",
        num_bank=4000,
        num_test=2000,
        num_classes=10,
        chance=0.1,
        pixels=0.2314,
        pixels_treatment="plain",
        untrained=None,
        trained=0.576,
    )
    page = render(Path("runs/x"), image_tiny(), history, {"knn": comparison})
    assert set(re.findall(r"<h3>(.*?)</h3>", page)) == TITLES
    sources = re.findall(r'src="(.*?)"', page)
    assert len(sources) == len(TITLES)
    for source in sources:
        kind, content = source.split(",")
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(content).lstrip().startswith(b"<?xml")
    assert not re.search(r"<link|<script|@import|url\(|href=", page)
    for text in ("30 of 1,600", "1:02:05", "0.49 M", "23.1 %", "57.6 %", "10.0 %", "k nearest neighbours", "1 alarm"):
        assert text in page, text
    assert "encoder.init_std" in page and "&lt;script&gt;" in page


def test_what_was_not_measured_is_not_drawn(history: History) -> None:
    history.health = []
    drawn = {plot.title for panel in panels(history) if (plot := draw(panel, history))}
    assert drawn == TITLES - {"Effective rank", "Spread of features"}


def test_curves_show_the_values(history: History) -> None:
    """The SVG of a rising series differs from that of a falling one, and is the same when drawn again."""
    panel = next(panel for panel in panels(history) if panel.title == "Gradient norm")
    flat = draw(panel, history)
    assert flat == draw(panel, history)
    history.train[1]["grad_norm"] = 0.9
    assert flat != draw(panel, history)


def test_status(history: History) -> None:
    history.events = []
    assert status(history, image_tiny()) == "last seen at step 30 of 1,600"
    history.events = [{"step": 30, "event": "stop", "message": "SIGTERM"}]
    assert status(history, image_tiny()) == "stopped at step 30 of 1,600"
    history.events = [{"step": 30, "event": "done", "message": ""}]
    assert status(history, image_tiny()) == "finished"
