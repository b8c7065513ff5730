"""Observers: reduce an activation to a range as it comes, in fixed memory.

Min-max and the histogram observers (percentile, entropy, MSE) give the same bits however the data
are cut into batches. A moving average is of the batches and cannot.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from onnxq.calibration.ranges import ChannelRange, Range
from onnxq.errors import CalibrationError
from onnxq.numerics.histogram import (
    Histogram,
    entropy_range,
    find_range,
    mse_range,
    percentile_range,
)

__all__ = ["HistogramObserver", "Method", "MinMax", "MovingAverage", "Observer", "ObserverSpec"]

Method = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]

Search = Callable[[Histogram], tuple[float, float]]

_HISTOGRAM_METHODS = frozenset({"percentile", "entropy", "mse"})

_PIECE = 1 << 18
"""Elements that are searched for their range and then counted, while they are in the cache."""

MASK_MAGNITUDE = 1e30
"""Beyond this a value is no activation: attention masks hold -inf or the lowest float (-3.4e38),
and a scale made from it would overflow float32."""


class Observer(abc.ABC):
    """Reduces the arrays of one value.

    Attributes:
        problem: why no range can be had, as a clause, or None.
        was_fed: whether anything was added at all.
        is_empty: whether no element was ever seen.
    """

    def __init__(self, axis: int | None) -> None:
        """Reduce over all axes, or over all but ``axis``."""
        self.axis = axis
        self.problem: str | None = None
        self.was_fed = False
        self.is_empty = True
        self._channels: int | None = None

    def add(self, array: np.ndarray) -> None:
        """Take in one array (any float dtype, any shape; empty ones are skipped)."""
        self.was_fed = True
        if self.problem is not None or array.size == 0:
            return
        if array.dtype != np.float32:
            array = array.astype(np.float32)
        if self.axis is not None and not self._fits(array):
            return
        self.problem = self._reduce(array)
        self.is_empty = False

    def result(self) -> Range | ChannelRange:
        """The range of everything that was added.

        Raises:
            CalibrationError: nothing was added, or something that has no range.
        """
        problem = self.problem or ("it is empty in every sample" if self.is_empty else None)
        if problem is not None:
            raise CalibrationError(
                f"A value has no range: {problem}. Leave it in float, or calibrate on other "
                "samples."
            )
        low, high = self._bounds()
        if self.axis is None:
            return Range(float(low) + 0.0, float(high) + 0.0)  # -0.0 + 0.0 is 0.0
        return ChannelRange(np.asarray(low, np.float32), np.asarray(high, np.float32), self.axis)

    def _fits(self, array: np.ndarray) -> bool:
        axis = self.axis or 0
        if not -array.ndim <= axis < array.ndim:
            self.problem = f"it has {array.ndim} axes and no channel axis {axis}"
            return False
        channels = array.shape[axis]
        if self._channels is not None and channels != self._channels:
            self.problem = (
                f"its channel axis {axis} is dynamic ({self._channels} channels in one sample, "
                f"{channels} in another) where per-channel ranges need a static size; "
                "calibrate it per tensor"
            )
            return False
        self._channels = channels
        return True

    @abc.abstractmethod
    def _reduce(self, array: np.ndarray) -> str | None:
        """Take in a float32 array that is not empty; returns the problem with it, or None."""

    @abc.abstractmethod
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends, scalars or ``[channels]``."""


def _unusable(low: float, high: float) -> str | None:
    """Why extremes make no range, as a clause, or None."""
    if math.isnan(low) or math.isnan(high):
        return "it holds NaN"
    largest = max(-low, high)
    if largest > MASK_MAGNITUDE:
        return f"it holds magnitudes up to {largest:.3g}, as masks do and activations do not"
    return None


class MinMax(Observer):
    """The least and the largest value ever seen."""

    _low: np.ndarray
    _high: np.ndarray

    def __init__(self, axis: int | None, symmetric: bool) -> None:
        """Give ranges centred on zero when ``symmetric``."""
        super().__init__(axis)
        self._symmetric = symmetric

    def _reduce(self, array: np.ndarray) -> str | None:
        low, high = self._extremes(array)
        problem = _unusable(float(low.min()), float(high.max()))
        if problem is None:
            self._widen(low, high)
        return problem

    def _extremes(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest element, scalar or ``[channels]``; NaN when any is NaN."""
        if self.axis is not None:
            others = tuple(a for a in range(array.ndim) if a != self.axis % array.ndim)
            return array.min(axis=others), array.max(axis=others)
        low, high, is_finite = find_range(array, threads=1)
        if not is_finite:
            low, high = float(array.min()), float(array.max())
        return np.asarray(low), np.asarray(high)

    def _widen(self, low: np.ndarray, high: np.ndarray) -> None:
        """Take in the extremes of one batch."""
        if not self.is_empty:
            low, high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._low, self._high = low, high

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        if self._symmetric:
            reach = np.maximum(np.abs(self._low), np.abs(self._high))
            return -reach, reach
        return self._low, self._high


class MovingAverage(MinMax):
    """Exponential moving average of the extremes of each batch (Jacob et al. 2018, section 3.1).

    Every run of the model counts once, so this depends on the order and size of the batches.
    """

    def __init__(self, axis: int | None, symmetric: bool, momentum: float) -> None:
        """Keep ``momentum`` of the old average at each batch; the first batch is taken whole."""
        super().__init__(axis, symmetric)
        self._momentum = momentum

    def _widen(self, low: np.ndarray, high: np.ndarray) -> None:
        low, high = low.astype(np.float64), high.astype(np.float64)
        if not self.is_empty:
            low = self._momentum * self._low + (1 - self._momentum) * low
            high = self._momentum * self._high + (1 - self._momentum) * high
        self._low, self._high = low, high


class HistogramObserver(Observer):
    """Counts values in bins, per tensor or per channel, and searches the range in the counts."""

    _histograms: list[Histogram]

    def __init__(self, axis: int | None, bins: int, search: Search) -> None:
        """Use ``bins`` bins per tensor or channel; ``search`` finds the range in a histogram."""
        super().__init__(axis)
        self._bins = bins
        self._search = search

    def _reduce(self, array: np.ndarray) -> str | None:
        channels = array[None] if self.axis is None else np.moveaxis(array, self.axis, 0)
        if self.is_empty:
            self._histograms = [Histogram(self._bins) for _ in channels]
        for histogram, channel in zip(self._histograms, channels, strict=True):
            flat = channel.reshape(-1)
            try:
                for begin in range(0, len(flat), _PIECE):
                    histogram.add(flat[begin : begin + _PIECE], threads=1)
            except CalibrationError:
                return _unusable(float(array.min()), float(array.max()))
            if problem := _unusable(histogram.low, histogram.high):
                return problem
        return None

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        ends = np.array([self._search(histogram) for histogram in self._histograms])
        return (ends[0, 0], ends[0, 1]) if self.axis is None else (ends[:, 0], ends[:, 1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObserverSpec:
    """How ranges are measured.

    Attributes:
        method: ``minmax``, ``moving_average``, ``percentile``, ``entropy`` (least
            Kullback-Leibler divergence) or ``mse`` (least mean squared rounding error).
        percentile: percentage of the values that must lie inside (both tails cut equally).
        bins: bins of a histogram.
        momentum: share of the old average that a moving average keeps.
        bits: width of the integers that ``entropy`` and ``mse`` optimize for.
        symmetric: give ranges centred on zero.
    """

    method: Method = "minmax"
    percentile: float = 99.99
    bins: int = 4096
    momentum: float = 0.9
    bits: int = 8
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise CalibrationError(f"There is no observer {self.method!r}: choose one of {known}.")
        if not 50 < self.percentile <= 100:
            raise CalibrationError(f"percentile is {self.percentile}: it must be in (50, 100].")
        if not 0 <= self.momentum < 1:
            raise CalibrationError(f"momentum is {self.momentum}: it must be in [0, 1).")
        if not 2 <= self.bits <= 8:
            raise CalibrationError(f"bits is {self.bits}: it must be from 2 to 8.")
        if self.bins < 256 or self.bins & (self.bins - 1):
            raise CalibrationError(
                f"bins is {self.bins}: it must be a power of two from 256 up, such as 4096."
            )

    @property
    def state_bytes(self) -> int:
        """Memory that the observer of one tensor, or of one channel, holds."""
        return 8 * self.bins if self.method in _HISTOGRAM_METHODS else 32

    def make(self, axis: int | None = None) -> Observer:
        """A fresh observer; per channel along ``axis``, per tensor when None."""
        if self.method == "minmax":
            return MinMax(axis, self.symmetric)
        if self.method == "moving_average":
            return MovingAverage(axis, self.symmetric, self.momentum)
        return HistogramObserver(axis, self.bins, self._search)

    def _search(self, histogram: Histogram) -> tuple[float, float]:
        """The range that the method chooses in a histogram."""
        if self.method == "percentile":
            return percentile_range(histogram, self.percentile, symmetric=self.symmetric)
        if self.method == "entropy":
            return entropy_range(histogram, self.symmetric, bits=self.bits)
        return mse_range(histogram, self.bits, self.symmetric)
