"""The range of an activation, and the fact that a value of a graph has one.

A range is measured on a graph as it is at that moment. `stamp_ranges` ties the facts to the
computation above each value (operators, attributes, weights: a Merkle hash), and `check_ranges`
refuses facts whose computation has been edited since: "rotated after calibrating" is then a
sentence and not a bad model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from onnxq.calibration.fingerprint import Fingerprints
from onnxq.errors import CalibrationError

__all__ = [
    "ChannelRange",
    "Range",
    "channel_range_of",
    "check_ranges",
    "drop_ranges",
    "invalidate_ranges",
    "range_of",
    "ranges_of",
    "set_range",
    "stamp_ranges",
]

_META_KEY = "onnxq.range"


@dataclasses.dataclass(frozen=True)
class Range:
    """The interval an activation is to be represented on, ``low <= high``, in its own units.

    Attributes:
        low: lower end; finite.
        high: upper end; finite.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse an interval that no number lies in."""
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low <= self.high):
            raise CalibrationError(
                f"[{self.low}, {self.high}] is not a range: both ends must be finite and low must "
                "not exceed high."
            )

    @property
    def magnitude(self) -> float:
        """The largest absolute value in the range."""
        return max(abs(self.low), abs(self.high))

    def symmetric(self) -> Range:
        """The smallest range around zero that holds this one."""
        return Range(-self.magnitude, self.magnitude)


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelRange:
    """One range per channel of an activation.

    Attributes:
        low: float32 ``[channels]``, lower ends.
        high: float32 ``[channels]``, upper ends.
        axis: the axis of the activation that holds the channels (negative counts from the end).
    """

    low: np.ndarray
    high: np.ndarray
    axis: int

    @property
    def magnitude(self) -> np.ndarray:
        """float32 ``[channels]``, the largest absolute value of each channel."""
        largest: np.ndarray = np.maximum(np.abs(self.low), np.abs(self.high))
        return largest

    @property
    def overall(self) -> Range:
        """The per-tensor range that holds every channel's."""
        return Range(float(self.low.min()), float(self.high.max()))

    def symmetric(self) -> ChannelRange:
        """The smallest ranges around zero that hold these."""
        return ChannelRange(-self.magnitude, self.magnitude, self.axis)


@dataclasses.dataclass(frozen=True)
class _Fact:
    """What is kept in ``value.meta``; ``kept`` holds the weights the fingerprint names by id."""

    range: Range | ChannelRange
    fingerprint: int | None = None
    kept: tuple[object, ...] = ()
    stale: str | None = None


def set_range(value: ir.Value, range: Range | ChannelRange) -> None:
    """Record the range of a value. Tie it to the graph afterwards with `stamp_ranges`."""
    value.meta[_META_KEY] = _Fact(range)


def range_of(value: ir.Value) -> Range | None:
    """The per-tensor range recorded for a value, or None when it has none.

    A value that was observed per channel gives the range that holds all its channels.

    Only facts that were explicitly invalidated are refused here, because a pass that inserts
    nodes as it reads ranges edits the graph under them: call `check_ranges` once before editing.

    Raises:
        CalibrationError: the range was invalidated by a pass that changed the activation.
    """
    fact = _trusted(value)
    if fact is None:
        return None
    return fact.range.overall if isinstance(fact.range, ChannelRange) else fact.range


def channel_range_of(value: ir.Value) -> ChannelRange | None:
    """The per-channel range recorded for a value, or None when it was not observed per channel.

    Raises:
        CalibrationError: as `range_of`.
    """
    fact = _trusted(value)
    return fact.range if fact is not None and isinstance(fact.range, ChannelRange) else None


def _trusted(value: ir.Value) -> _Fact | None:
    """The fact of a value, refused when it was invalidated."""
    fact: _Fact | None = value.meta.get(_META_KEY)
    if fact is not None and fact.stale is not None:
        raise CalibrationError(
            f"The range of {_where(value)} no longer holds: {fact.stale}. Put the calibrate pass "
            "after every pass that changes activations, and run again."
        )
    return fact


def drop_ranges(model: ir.Model) -> None:
    """Forget every range of the main graph."""
    for value in _values(model):
        value.meta.pop(_META_KEY, None)


def invalidate_ranges(values: Iterable[ir.Value], why: str) -> None:
    """Mark the ranges of ``values`` as no longer true.

    Args:
        values: the values whose activation changes; those without a range are left alone.
        why: what happened, as a clause for the later message: "it was rotated after calibrating".
    """
    for value in values:
        fact = value.meta.get(_META_KEY)
        if fact is not None:
            value.meta[_META_KEY] = dataclasses.replace(fact, stale=why)


def stamp_ranges(model: ir.Model) -> None:
    """Tie every range of the main graph to the computation above its value, as it is now.

    A pass that changes activations only by rounding (it quantizes weights) may stamp again, to say
    that the ranges still hold.
    """
    fingerprints = Fingerprints(model)
    kept = fingerprints.kept
    for value in _values(model):
        fact = value.meta.get(_META_KEY)
        if fact is not None:
            value.meta[_META_KEY] = dataclasses.replace(
                fact, fingerprint=fingerprints.of(value), kept=kept
            )


def check_ranges(model: ir.Model) -> None:
    """Refuse a model whose ranges are missing, invalidated, or older than its graph.

    Raises:
        CalibrationError: names the first value, in graph order, whose range cannot be trusted.
    """
    ranges_of(model)


def ranges_of(model: ir.Model) -> dict[str, Range]:
    """The per-tensor ranges of all main-graph values by name, checked against the graph.

    Raises:
        CalibrationError: as `check_ranges`.
    """
    fingerprints = Fingerprints(model)
    found: dict[str, Range] = {}
    for value in _values(model):
        measured = range_of(value)
        if measured is None:
            continue
        fact: _Fact = value.meta[_META_KEY]
        if fact.fingerprint is not None and fact.fingerprint != fingerprints.of(value):
            raise CalibrationError(
                f"The range of {_where(value)} was measured before the graph that computes it was "
                "edited, so it may no longer hold. Put the calibrate pass after every pass that "
                "changes activations, and run again."
            )
        found[value.name or ""] = measured
    if not found:
        raise CalibrationError(
            f"The graph {model.graph.name!r} carries no activation ranges. Put the calibrate pass "
            "earlier in the recipe, and give calibration data."
        )
    return found


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Inputs and node outputs of the main graph, in graph order."""
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _where(value: ir.Value) -> str:
    """The value and the node that computes it, for a message."""
    producer = value.producer()
    if producer is None:
        return f"input {value.name!r}"
    return f"{value.name!r} (output of {producer.op_type} node {producer.name!r})"
