"""Histograms of activations that do not depend on how the data were cut into batches.

A histogram has ``bins`` bins of width ``2**e``, half of them on each side of 0; ``e`` is the
smallest exponent with which the largest magnitude seen still fits. When a larger value comes,
neighbouring bins are added in pairs until it fits. A value ``v`` lies ``floor(|v| / 2**e)`` bins
from 0 on the side of its sign, and ``floor(floor(x) / 2) == floor(x / 2)``, so merging bins later
gives the same counts as wide bins from the start: the state is a function of the multiset of values
alone. Between a quarter and all of the bins are in use. Exact zeros are counted apart, because
every quantizer represents them without error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import CalibrationError
from onnxq.numerics import _native
from onnxq.numerics.clipping import least_error_window
from onnxq.numerics.entropy import entropy_sweep
from onnxq.numerics.threads import default_threads

__all__ = [
    "Histogram",
    "bin_counts_reference",
    "entropy_range",
    "find_range",
    "mse_range",
    "percentile_range",
]

_LEAST_EXPONENT = -126  # 2**-e must be a float32
_PIECE = 1 << 22  # values converted to float32 at a time


def find_range(
    values: npt.NDArray[Any], *, threads: int | None = None
) -> tuple[float, float, bool]:
    """Smallest value, largest value, and whether all are finite, in one pass.

    Args:
        values: any shape, at least one element, float32 or float16 (others are converted).
        threads: of the kernel; the result does not depend on it.
    """
    threads = threads or default_threads()
    low, high, finite = math.inf, -math.inf, True
    for piece in _pieces(values):
        ends = _native.find_range(piece, threads)
        low, high, finite = min(low, ends[0]), max(high, ends[1]), finite and ends[2]
    return low, high, finite


class Histogram:
    """Counts of the values of one tensor over all samples.

    Attributes:
        low: the smallest value seen, exactly; ``inf`` before the first.
        high: the largest value seen, exactly; ``-inf`` before the first.
        count: how many values were added.
        zeros: how many of them were 0.
        exponent: bins are ``2**exponent`` wide; None while nothing but zeros was seen.
        counts: int64 ``[bins]``; bin ``bins // 2`` is the first one above 0.
    """

    def __init__(self, bins: int = 4096) -> None:
        """Make an empty histogram; ``bins`` must be a power of two from 8 up."""
        if bins < 8 or bins & (bins - 1):
            raise CalibrationError(
                f"a histogram has a power of two of bins from 8 up, not {bins}: choose 4096."
            )
        self.low = math.inf
        self.high = -math.inf
        self.count = 0
        self.zeros = 0
        self.exponent: int | None = None
        self.counts = np.zeros(bins, np.int64)

    @property
    def width(self) -> float:
        """The width of a bin, in the unit of the values; 0 while nothing but zeros was seen."""
        return 0.0 if self.exponent is None else math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The ``bins + 1`` edges of the bins."""
        half = len(self.counts) // 2
        return np.arange(-half, half + 1, dtype=np.float64) * np.float64(self.width)

    def add(self, values: npt.NDArray[Any], *, threads: int | None = None) -> None:
        """Count the values of an array of any shape, float32 or float16 (others are converted).

        Raises:
            CalibrationError: NaN or infinity among the values; nothing was counted then.
        """
        if values.size == 0:
            return
        threads = threads or default_threads()
        low, high, finite = find_range(values, threads=threads)
        if not finite:
            raise CalibrationError(
                "a calibration sample makes NaN or infinity in this tensor: check the data for "
                "values the model was not trained on, and the model in float first."
            )
        self._hold(low, high)
        self.count += values.size
        if self.exponent is None:
            self.zeros += values.size
            return
        inverse = math.ldexp(1.0, -self.exponent)
        for piece in _pieces(values):
            self.zeros += _native.add_to_bins(piece, inverse, self.counts, threads)

    def merge(self, other: Histogram) -> None:
        """Add the counts of a histogram with as many bins: as if its values had been added here.

        Raises:
            CalibrationError: the number of bins differs.
        """
        if len(other.counts) != len(self.counts):
            raise CalibrationError(
                f"histograms of {len(self.counts)} and {len(other.counts)} bins cannot be merged: "
                "make both with the same number of bins."
            )
        if other.count == 0:
            return
        self._hold(other.low, other.high)
        self.count += other.count
        self.zeros += other.zeros
        if other.exponent is not None and self.exponent is not None:
            self.counts += _coarser(other.counts, self.exponent - other.exponent)

    def _hold(self, low: float, high: float) -> None:
        """Widen the range, and the bins when it does not fit any more."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = max(-self.low, self.high)
        if reach == 0:
            return
        half_bits = (len(self.counts) // 2).bit_length() - 1
        exponent = max(math.frexp(reach)[1] - half_bits, _LEAST_EXPONENT)
        if self.exponent is not None and exponent > self.exponent:
            self.counts = _coarser(self.counts, exponent - self.exponent)
        self.exponent = exponent


def entropy_range(
    histogram: Histogram, symmetric: bool, *, bits: int = 8, threads: int = 1
) -> tuple[float, float]:
    """The range with the least Kullback-Leibler divergence, see `onnxq.numerics.entropy`.

    Args:
        histogram: at least 8 bins for every level of the quantizer give a useful answer.
        symmetric: the range is ``(-T, T)``; otherwise it ends where the data end, if they do.
        bits: of the codes.
        threads: of the kernel; the result does not depend on it.

    Returns:
        ``(low, high)``, ``low <= 0 <= high``; the wider one of equally good ranges.

    Raises:
        CalibrationError: the histogram is empty.
    """
    low, high = _filled_range(histogram)
    if histogram.exponent is None:
        return low, high
    half = len(histogram.counts) // 2
    used = np.flatnonzero(histogram.counts)
    first, last = min(int(used[0]), half), max(int(used[-1]) + 1, half)
    widest = max(half - first, last - half)
    limits = (0, 2 * half) if symmetric else (first, last)
    levels = 2**bits - 1 if symmetric else 2**bits
    sweep = entropy_sweep(histogram.counts, *limits, levels, threads=threads)[:widest]
    if not np.isfinite(sweep).any():
        reach = max(-low, high)
        return (-reach, reach) if symmetric else (low, high)
    # The last of the best, i.e. the widest.
    bins = widest - int(np.argmin(sweep[::-1]))
    threshold = bins * histogram.width
    if symmetric:
        threshold = min(threshold, max(-low, high))
        return -threshold, threshold
    return max(low, -threshold), min(high, threshold)


def percentile_range(
    histogram: Histogram, percentile: float, *, symmetric: bool = False
) -> tuple[float, float]:
    """The range that holds ``percentile`` percent of the values.

    Asymmetric, half of the rest is cut at each end, as ONNX Runtime does; symmetric, the range is
    that of magnitudes. Ends are interpolated inside their bin and never lie outside the data.

    Raises:
        CalibrationError: the histogram is empty, or ``percentile`` not in (0, 100].
    """
    if not 0 < percentile <= 100:
        raise CalibrationError(f"percentile is {percentile}; choose one above 0 and up to 100.")
    low, high = _filled_range(histogram)
    half = len(histogram.counts) // 2
    above, below = histogram.counts[half:], histogram.counts[:half][::-1]
    if symmetric:
        kept = histogram.count * percentile / 100
        reach = _quantile(above + below, histogram.zeros, kept, histogram.width)
        reach = min(reach, max(-low, high))
        return -reach, reach
    kept = histogram.count * (1 + percentile / 100) / 2
    return (
        max(low, -_quantile(below, histogram.count - int(below.sum()), kept, histogram.width)),
        min(high, _quantile(above, histogram.count - int(above.sum()), kept, histogram.width)),
    )


def mse_range(histogram: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """The range with the least squared error of ``bits``-bit codes, see `onnxq.numerics.clipping`.

    Returns:
        ``(low, high)``, ``low <= 0 <= high``.

    Raises:
        CalibrationError: the histogram is empty.
    """
    low, high = _filled_range(histogram)
    if histogram.exponent is None:
        return low, high
    edges = histogram.edges
    filled = histogram.counts > 0
    centres = np.clip((edges[:-1] + edges[1:]) / 2, low, high)[filled]
    counts = histogram.counts[filled].astype(np.float64)
    return least_error_window(centres, counts, low, high, bits, symmetric)


def bin_counts_reference(
    values: npt.NDArray[Any], exponent: int, bins: int
) -> npt.NDArray[np.int64]:
    """Where `Histogram` counts values, in float64: ``[bins]``, exact zeros left out."""
    exact = values.astype(np.float64).reshape(-1)
    exact = exact[exact != 0]
    steps = np.floor(np.ldexp(np.abs(exact), -exponent)).astype(np.int64)
    return np.bincount(
        np.where(exact < 0, bins // 2 - 1 - steps, bins // 2 + steps), minlength=bins
    )


def _pieces(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float32]]:
    """The values as contiguous float32: whole when they are, else converted some at a time."""
    flat = values.reshape(-1)
    step = flat.size if flat.dtype == np.float32 else _PIECE
    for begin in range(0, flat.size, step):
        yield np.ascontiguousarray(flat[begin : begin + step], dtype=np.float32)


def _coarser(counts: npt.NDArray[np.int64], halvings: int) -> npt.NDArray[np.int64]:
    """The counts in bins ``2**halvings`` times as wide."""
    half = len(counts) // 2
    factor = 2 ** min(halvings, half.bit_length() - 1)
    wide = np.zeros_like(counts)
    kept = half // factor
    wide[half : half + kept] = counts[half:].reshape(kept, factor).sum(axis=1)
    wide[half - kept : half] = counts[:half].reshape(kept, factor).sum(axis=1)
    return wide


def _quantile(counts: npt.NDArray[np.int64], before: int, kept: float, width: float) -> float:
    """The distance from 0 within which ``kept`` values lie, ``before`` of them at or past 0."""
    total = before + np.cumsum(counts)
    if kept <= before:
        return 0.0
    place = min(int(np.searchsorted(total, kept)), len(counts) - 1)
    inside = (kept - (total[place] - counts[place])) / max(int(counts[place]), 1)
    return float((place + min(inside, 1.0)) * width)


def _filled_range(histogram: Histogram) -> tuple[float, float]:
    """Low and high widened to hold 0."""
    if histogram.count == 0:
        raise CalibrationError(
            "no values were seen for this tensor, so it has no range: "
            "calibrate with at least one sample that reaches it."
        )
    return min(histogram.low, 0.0), max(histogram.high, 0.0)
