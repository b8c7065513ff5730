"""The clipping range with the least squared error, from a histogram.

Choosing the range that minimises the mean squared error of the rounded values is from Banner et
al. 2019 (arXiv:1810.05723, section 3), here on the measured distribution instead of a fitted one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxq.numerics import _native

__all__ = ["least_error_window", "rounding_costs", "rounding_costs_reference"]

Doubles = npt.NDArray[np.float64]

_COARSE = 2.0 ** (-np.arange(21) / 2)  # 1 down to 1/1024: an outlier may be that far away
_ZOOMS = 3  # how often the grid is drawn again around its best point
_POINTS = 9  # of a redrawn grid, along each end


def rounding_costs(
    values: Doubles, counts: Doubles, scales: Doubles, zeros: Doubles, lowest: int, highest: int
) -> Doubles:
    """Sums of squared rounding errors of values that occur ``counts`` times.

    Args:
        values: ``[n]``.
        counts: ``[n]``.
        scales: ``[m]``, above 0: the steps to try.
        zeros: ``[m]``, whole numbers: the code of 0 for each.
        lowest: smallest code.
        highest: largest code.

    Returns:
        ``[m]``, in the square of the unit of ``values``.
    """
    costs = np.empty(len(scales))
    _native.rounding_costs(values, counts, scales, zeros, lowest, highest, costs)
    return costs


def rounding_costs_reference(
    values: Doubles, counts: Doubles, scales: Doubles, zeros: Doubles, lowest: int, highest: int
) -> Doubles:
    """The meaning of `rounding_costs`, in NumPy."""
    scale, zero = scales[:, None], zeros[:, None]
    steps = np.rint(np.clip(values / scale, lowest - zero, highest - zero))
    return np.asarray(((steps * scale - values) ** 2) @ counts)


def least_error_window(
    values: Doubles, counts: Doubles, low: float, high: float, bits: int, symmetric: bool
) -> tuple[float, float]:
    """The ends of the range inside ``[low, high]`` whose rounding costs least.

    Args:
        values: ``[n]``, in ``[low, high]``.
        counts: ``[n]``, how often each occurs.
        low: at most 0.
        high: at least 0; ``low < high``.
        bits: of the codes.
        symmetric: the range is ``[-T, T]`` and the codes ``[-(2**(bits-1) - 1), 2**(bits-1) - 1]``;
            otherwise 0 has a whole code inside ``[0, 2**bits - 1]``, and each end is moved on its
            own.
    """
    if symmetric:
        reach, top = max(-low, high), max(2 ** (bits - 1) - 1, 1)

        def of_thresholds(ends: Doubles) -> Doubles:
            scales = ends[:, 1] / top
            return rounding_costs(values, counts, scales, np.zeros_like(scales), -top, top)

        _, threshold = _best(0.0, reach, of_thresholds)
        return -threshold, threshold
    levels = 2**bits - 1

    def of_windows(ends: Doubles) -> Doubles:
        scales = (ends[:, 1] - ends[:, 0]) / levels
        return rounding_costs(values, counts, scales, np.rint(-ends[:, 0] / scales), 0, levels)

    return _best(low, high, of_windows)


def _best(low: float, high: float, cost: Callable[[Doubles], Doubles]) -> tuple[float, float]:
    """The pair of ends of least cost, each between 0 and the one given; the wider on a tie.

    The cost has many shallow valleys (the zero point jumps), so the first grid is of pairs.
    """
    factors = [_COARSE if end else _COARSE[:1] for end in (low, high)]
    best = (low, high)
    for zoom in range(_ZOOMS + 1):
        lows, highs = np.meshgrid(low * factors[0], high * factors[1], indexing="ij")
        ends = np.stack([lows.reshape(-1), highs.reshape(-1)], axis=1)
        place = int(np.argmin(cost(ends)))
        best = (float(ends[place, 0]), float(ends[place, 1]))
        places = np.unravel_index(place, lows.shape)
        if zoom < _ZOOMS:
            factors = [_around(axis, int(at)) for axis, at in zip(factors, places, strict=True)]
    return best


def _around(factors: Doubles, place: int) -> Doubles:
    """A finer grid from one neighbour of a factor to the other, from the wider to the narrower."""
    if len(factors) == 1:
        return factors
    wider, narrower = factors[max(place - 1, 0)], factors[min(place + 1, len(factors) - 1)]
    grid = np.linspace(wider, narrower, _POINTS)
    return np.unique(np.append(grid, factors[place]))[::-1].copy()
