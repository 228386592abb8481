"""What a process says of itself when others let it wait."""

import time

import pytest

from pretrain.errors import RunError
from pretrain.parallel.watch import Watch


def test_error_of_a_collective_names_process_and_inner_phase() -> None:
    watch = Watch("rank 3 of 4 (stage 1 of 2, dp 1, tp 0)", 60)
    with (
        pytest.raises(RunError, match=r"^rank 3 of 4 \(stage 1 of 2, dp 1, tp 0\): sending failed, .*Timed out"),
        watch.phase("running the pipeline"),
        watch.phase("sending"),
    ):
        raise RuntimeError("[unbound_buffer.cc:78] Timed out waiting 5000ms for send operation to complete")
    watch.close()


def test_other_errors_stay_and_are_noted() -> None:
    watch = Watch("rank 0 of 1", 60)
    error = RuntimeError("shape '[2]' is invalid for input of size 3")
    with pytest.raises(RuntimeError) as caught, watch.phase("computing microbatch 4"):
        raise error
    assert caught.value is error
    assert error.__notes__ == ["rank 0 of 1, while computing microbatch 4"]
    watch.close()


def test_long_phase_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch("rank 1 of 2", 0.4)
    for name in ("short", "long"):
        with watch.phase(name):
            time.sleep(0.1 if name == "short" else 0.7)
    watch.close()
    assert capsys.readouterr().err.splitlines() == ["rank 1 of 2: long for 0 s, giving up soon"]
