"""Run samples through a model and reduce its inner values to ranges as they come.

Activations are fetched in chunks: as many values at a time as fit the memory budget for one run,
which a first run that returns only their shapes has measured. Each chunk runs over all samples on
a cut-down model that ends at its last value. Nothing is kept but the observers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from onnxq.calibration.checks import checked_samples
from onnxq.calibration.observable import observable_values
from onnxq.calibration.observed_model import returning, returning_shapes
from onnxq.calibration.observers import Method, Observer, ObserverSpec
from onnxq.calibration.ranges import ChannelRange, Range
from onnxq.errors import CalibrationError
from onnxq.numerics.threads import default_threads
from onnxq.runtime import open_session

__all__ = ["DEFAULT_BUDGET", "Progress", "Ranges", "collect_ranges"]

Progress = Callable[[str, int, int], None]
Sample = Mapping[str, np.ndarray]

DEFAULT_BUDGET = 64 << 20
"""Bytes of activations fetched by one run: beyond a few times the last-level cache a larger chunk
gains nothing but fewer repeated runs."""

_GROWTH = 1.25
"""A sample this many times larger than the measured one has its sizes measured again."""


class Ranges(dict[str, Range | ChannelRange]):
    """Ranges by value name, and in ``reasons`` why other values have none.

    Attributes:
        reasons: by name of a value, body or function, a clause such as "it holds NaN".
        samples: how many samples were run.
    """

    def __init__(self) -> None:
        """Begin empty."""
        super().__init__()
        self.reasons: dict[str, str] = {}
        self.samples = 0


def collect_ranges(
    model: ir.Model,
    values: Sequence[str] | None,
    samples: Iterable[Sample],
    *,
    observer: Method | ObserverSpec = "minmax",
    axes: Mapping[str, int] | None = None,
    budget: int = DEFAULT_BUDGET,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Ranges:
    """Measure the ranges of activations of the main graph.

    Args:
        model: left as it is.
        values: names of values to observe; None observes every floating-point activation.
        samples: inputs by name, one mapping per run; iterated once per chunk of values.
        observer: how a range is chosen.
        axes: the channel axis of each value to observe per channel; others are per tensor.
        budget: bytes of activations one run may return. A single larger value is still fetched.
        threads: threads of the runtime; None leaves the choice to it.
        progress: called with (what, done, total) after every run; total is 0 while unknown.

    Returns:
        ranges by value name; values without one are in its ``reasons``.

    Raises:
        CalibrationError: the samples do not fit the model, there are none, or a name in ``values``
            is no activation of the main graph.
        UnsupportedGraph: the runtime does not load the model.
    """
    spec = observer if isinstance(observer, ObserverSpec) else ObserverSpec(method=observer)
    found = observable_values(model)
    names = found.names if values is None else _known(values, found.names, found.reasons, model)
    with ThreadPoolExecutor(threads or default_threads()) as pool:
        run = _Run(
            model=model,
            samples=checked_samples(samples, model),
            budget=budget,
            threads=threads,
            report=progress or _silent,
            spec=spec,
            axes=axes or {},
            pool=pool,
        )
        ranges = run.collect(dict.fromkeys(names))
    if values is None:
        ranges.reasons = {**found.reasons, **ranges.reasons}
    return ranges


@dataclasses.dataclass
class _Run:
    """One collection: the plan, the session that is open, and the observers."""

    model: ir.Model
    samples: Iterable[Sample]
    budget: int
    threads: int | None
    report: Progress
    spec: ObserverSpec
    axes: Mapping[str, int]
    pool: Executor
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    measured: int = 0
    """Elements in the inputs of the sample whose sizes were measured."""
    total: int = 0
    """Samples, known after the first chunk."""

    def collect(self, names: Iterable[str]) -> Ranges:
        """Observe all of ``names``, chunk by chunk."""
        ranges = Ranges()
        pending = list(names)
        self._measure(next(iter(self.samples)), pending)
        while pending or not self.total:
            observers = self._observe(self._chunk(pending))
            for name, outcome in zip(
                observers, self.pool.map(_outcome, observers.values()), strict=True
            ):
                if isinstance(outcome, str):
                    ranges.reasons[name] = outcome
                elif outcome is not None:
                    ranges[name] = outcome
            pending = pending[len(observers) :]
        ranges.samples = self.total
        return ranges

    def _observe(self, chunk: Sequence[str]) -> dict[str, Observer]:
        """Run all samples; returns observers for the chunk, or for as much of it as fitted."""
        observers = {name: self.spec.make(self.axes.get(name)) for name in chunk}
        count = 0
        with contextlib.ExitStack() as opened:
            run = self._open(chunk, opened)
            for sample in self.samples:
                if _elements(sample) > _GROWTH * self.measured:
                    self._measure(sample, list(self.sizes))
                    chunk = self._chunk(list(observers))
                    if len(chunk) < len(observers):
                        observers = {name: observers[name] for name in chunk}
                        opened.close()
                        run = self._open(chunk, opened)
                _add({**run(sample), **sample}, observers, self.pool)
                count += 1
                self.report("calibrating", count, self.total)
        self.total = count
        return observers

    def _open(
        self, chunk: Sequence[str], opened: contextlib.ExitStack
    ) -> Callable[[Sample], Mapping[str, np.ndarray]]:
        """A function from a sample to the values of the chunk that are computed and are floats."""
        inputs = {value.name for value in self.model.graph.inputs}
        inner = [name for name in chunk if name not in inputs]
        if not inner:
            return lambda sample: {}
        cut = returning(self.model, inner, pinned=tuple(self.sizes))
        # The observers work between the runs: threads that spin meanwhile take cores from them.
        session = opened.enter_context(
            open_session(cut, threads=self.threads, shapes_first=True, lean=True)
        )
        wanted = set(inner)
        floats = [s.name for s in session.outputs if s.name in wanted and s.dtype.kind == "f"]
        return lambda sample: session.run(sample, floats) if floats else {}

    def _measure(self, sample: Sample, names: Sequence[str]) -> None:
        """Learn how many bytes each value takes on this sample, without fetching any."""
        if not names:
            return
        model, outputs = returning_shapes(self.model, names)
        with open_session(model, threads=self.threads, shapes_first=True) as session:
            shapes = session.run(sample)
        self.sizes = {name: self._bytes(name, shapes[output]) for name, output in outputs.items()}
        self.measured = _elements(sample)

    def _bytes(self, name: str, shape: np.ndarray) -> int:
        """Memory for one value of this shape in float32, and for its observer."""
        axis = self.axes.get(name)
        is_split = axis is not None and -len(shape) <= axis < len(shape)
        observers = int(shape[axis]) if is_split else 1
        return 4 * math.prod(map(int, shape)) + self.spec.state_bytes * observers

    def _chunk(self, names: Sequence[str]) -> list[str]:
        """The first names whose values fit the budget together; at least one."""
        chunk: list[str] = []
        room = self.budget
        for name in names:
            room -= self.sizes[name]
            if chunk and room < 0:
                break
            chunk.append(name)
        return chunk


def _add(
    arrays: Mapping[str, np.ndarray], observers: Mapping[str, Observer], pool: Executor
) -> None:
    """Give every observer its array; each is one task, so the result is that of one thread."""
    seen = [name for name in arrays if name in observers]
    seen.sort(key=lambda name: arrays[name].size, reverse=True)
    for _ in pool.map(lambda name: observers[name].add(arrays[name]), seen):
        pass


def _outcome(observer: Observer) -> Range | ChannelRange | str | None:
    """The range, or why there is none; None when it was never fed: it watched an integer."""
    if observer.problem is not None:
        return observer.problem
    if observer.is_empty:
        return "it is empty in every sample" if observer.was_fed else None
    return observer.result()


def _elements(sample: Sample) -> int:
    return sum(array.size for array in sample.values())


def _silent(what: str, done: int, total: int) -> None:
    """The progress callback of a caller who gave none."""


def _known(
    values: Sequence[str], names: Sequence[str], reasons: Mapping[str, str], model: ir.Model
) -> Sequence[str]:
    """``values``, each checked to be an activation of the main graph."""
    known = set(names)
    for name in values:
        if name not in known:
            why = reasons.get(
                name, "it is a weight, an integer, inside a body or function, or misspelt"
            )
            raise CalibrationError(
                f"{name!r} is no activation of the main graph of {model.graph.name!r} that can be "
                f"observed: {why}. Leave it out of the values to calibrate."
            )
    return values
