"""Latency of several models against one another, on one machine that does other things too.

Models are timed alternately, one run each in every round, so that a slow minute of the machine
falls on all of them; the ratio of two models is the median over rounds of their ratio within a
round, which is far steadier than the ratio of two medians.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import CalibrationError
from onnxq.evaluate.feeds import feeds_of
from onnxq.runtime import Session, open_session

__all__ = ["Latencies", "QuietTimer", "Spread", "latency"]

Progress = Callable[[str, int, int], None]

_REPEATS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray[Any, Any]) -> Spread:
        """The 50th, 25th and 75th percentiles."""
        low, median, high = np.percentile(np.asarray(values, np.float64), [25, 50, 75])
        return cls(median=float(median), low=float(low), high=float(high))


@dataclasses.dataclass(frozen=True)
class Latencies:
    """Seconds of every run, [models, rounds]."""

    seconds: np.ndarray[Any, Any]

    @property
    def spreads(self) -> tuple[Spread, ...]:
        """Seconds of one run of each model."""
        return tuple(Spread.of(row) for row in self.seconds)

    @property
    def ratios(self) -> tuple[Spread, ...]:
        """Time of each model over that of the first, round by round; below 1 is faster."""
        return tuple(Spread.of(row / self.seconds[0]) for row in self.seconds)

    @property
    def ratio(self) -> float:
        """Time of the last model over that of the first: the median over rounds."""
        return self.ratios[-1].median


def latency(
    models: Sequence[str | Path | ir.Model],
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    rounds: int = 20,
    warmup: int = 2,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Latencies:
    """Time models alternately on the same inputs.

    Args:
        models: files or models in memory, the first one to compare with.
        samples: inputs by name; round r runs sample r modulo their number.
        rounds: timed runs of each model.
        warmup: runs of each model on each sample before that, not timed.
        threads: threads inside an operator; None leaves the choice to the runtime.
        progress: called with ("latency", rounds done, rounds).

    Raises:
        CalibrationError: there are no samples, or one lacks an input.
        OnnxqError: a model does not load or run.
    """
    if not samples:
        raise CalibrationError("There are no samples to time the models on: give at least one.")
    seconds = np.zeros((len(models), rounds))
    with contextlib.ExitStack() as stack:
        sessions = [
            stack.enter_context(open_session(m, threads=threads, configure=_stop_spinning))
            for m in models
        ]
        feeds = [
            [feeds_of(session, sample, i) for i, sample in enumerate(samples)]
            for session in sessions
        ]
        for session, given in zip(sessions, feeds, strict=True):
            for _ in range(warmup):
                for sample in given:
                    session.run(sample)
        for turn in range(rounds):
            # Who goes first changes too, as caches are those of the run before.
            for place in range(len(sessions)):
                index = (place + turn) % len(sessions)
                given = feeds[index]
                seconds[index, turn] = _timed(sessions[index], given[turn % len(given)])
            if progress is not None:
                progress("latency", turn + 1, rounds)
    return Latencies(seconds)


class QuietTimer:
    """Times models beside a first one, as if the machine were always as quiet as it was once.

    A busy minute falls on all models alike, so their ratio is steady where milliseconds are not: a
    model takes its ratio to the first one times the least that the first one was seen to take.

    Attributes:
        first_ms: the least median of the first model so far.
    """

    def __init__(
        self, first: str | Path | ir.Model, sample: Mapping[str, np.ndarray], first_ms: float
    ) -> None:
        """Begin with what a run of ``first`` on ``sample`` was seen to take."""
        self._first, self._sample, self.first_ms = first, sample, first_ms

    def milliseconds(self, model: str | Path | ir.Model, enough: float = math.inf) -> float:
        """Of a run of a model; measured again, a few times, while it takes longer than ``enough``.

        Raises:
            OnnxqError: a model does not load or run.
        """
        ratios: list[float] = []
        for _ in range(_REPEATS):
            timed = latency([self._first, model], [self._sample])
            self.first_ms = min(self.first_ms, 1e3 * timed.spreads[0].median)
            ratios.append(timed.ratio)
            if self.first_ms * float(np.median(ratios)) <= enough:
                break
        return self.first_ms * float(np.median(ratios))


def _stop_spinning(options: Any) -> None:
    """Let the threads of a session rest after a run.

    Else they wait for work in a loop for tens of milliseconds, on the cores of the next session.
    """
    options.add_session_config_entry("session.force_spinning_stop", "1")


def _timed(session: Session, feeds: Mapping[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start
