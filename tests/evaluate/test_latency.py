"""Times of models beside a first one, on a machine that is not always quiet."""

import importlib

import numpy as np
import pytest

from onnxq.evaluate.latency import Latencies, QuietTimer


@pytest.fixture
def timed(monkeypatch):
    """Seconds of the first model and ratios of the other, one of each for every measurement."""

    def given(*rows):
        waiting = list(rows)

        def measured(models, samples):
            seconds, ratio = waiting.pop(0)
            return Latencies(np.array([[seconds] * 3, [seconds * ratio] * 3]))

        monkeypatch.setattr(importlib.import_module("onnxq.evaluate.latency"), "latency", measured)
        return waiting

    return given


def test_a_slow_minute_does_not_make_a_model_slower(timed):
    timed((0.06, 0.5))
    timer = QuietTimer("first", {}, first_ms=40.0)
    assert timer.milliseconds("other") == pytest.approx(20.0)


def test_what_takes_too_long_is_measured_again_until_the_machine_is_quiet(timed):
    left = timed((0.06, 0.5), (0.05, 0.5), (0.04, 0.5), (0.01, 0.5))
    timer = QuietTimer("first", {}, first_ms=70.0)
    assert timer.milliseconds("other", enough=21.0) == pytest.approx(20.0)
    assert timer.first_ms == 40.0 and len(left) == 1


def test_what_is_too_slow_at_any_time_is_given_up(timed):
    left = timed(*[(0.04, 0.5)] * 9)
    assert QuietTimer("first", {}, 70.0).milliseconds("other", enough=1.0) == pytest.approx(20.0)
    assert len(left) == 4
