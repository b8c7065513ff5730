"""Tables of few values for many numbers: weighted k-means in one dimension, exact, and rounding.

In one dimension the clusters of k-means are runs of the sorted numbers, so the best of all
clusterings into k can be found: with sums of w, w x of all numbers before each place, a run costs
Σ w x² − (Σ w x)² / Σ w at once, and the best clustering of a prefix into c runs follows from those
into c − 1. Splits grow with the prefix, so that halving the prefixes takes O(k n log n) steps in
all. Grønlund et al., "Fast Exact k-Means, k-Medians and Bregman Divergence Clustering in 1D"
(arXiv:1701.07204). It is the Lloyd–Max quantizer of the numbers as they are; with weights from the
Hessian or the Fisher information it is SqueezeLLM's (Kim et al., arXiv:2306.07629, section 4.1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxq.numerics import _native
from onnxq.numerics.threads import default_threads

__all__ = ["FACTORS", "Fitted", "fit_tables", "nearest_entries", "search_scales"]

Array = npt.NDArray[Any]

FACTORS = tuple(float(factor) for factor in np.linspace(1.0, 0.3, 71))
"""Scales that `search_scales` tries, as parts of the one that reaches the largest number."""

_MOST = 1 << 14
"""Numbers of a table clustered exactly; of more, runs of neighbours are, and then improved."""


class Fitted(NamedTuple):
    """Tables of `fit_tables`.

    Attributes:
        tables: float64 ``[rows, groups, entries]``, ascending.
        masses: the sum of weights of each entry, the same shape; 0 for one that is not needed.
    """

    tables: npt.NDArray[np.float64]
    masses: npt.NDArray[np.float64]


def fit_tables(
    values: Array,
    entries: int,
    *,
    group: int | None = None,
    importance: Array | None = None,
    threads: int | None = None,
    most: int = _MOST,
) -> Fitted:
    """The tables with the least weighted sum of squared distances to their nearest entry.

    Args:
        values: ``[rows, columns]``, finite.
        entries: of each table, 1 to 256.
        group: neighbours of a row that share a table; the whole row when None.
        importance: of a squared error, not negative: ``[columns]`` or ``[rows, columns]``; alike
            when None.
        threads: of the kernel; the result does not depend on it.
        most: numbers of a table up to which it is the best of all.
    """
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    group = group or columns
    shape = (rows, -(-columns // group), entries)
    fitted = Fitted(np.empty(shape), np.empty(shape))
    _native.fit_tables(
        values,
        _weights(importance, columns),
        group,
        max(most, entries),
        *fitted,
        threads or default_threads(),
    )
    return fitted


def nearest_entries(
    values: Array,
    tables: Array,
    scales: Array,
    *,
    group: int | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.uint8]:
    """The codes ``[rows, columns]`` of the entries nearest to each number.

    Args:
        values: ``[rows, columns]``, finite.
        tables: ``[rows or 1, groups or 1, entries]``, ascending; entry times scale is a number.
        scales: ``[rows or 1, groups or 1]``, not 0.
        group: neighbours of a row that share a table or a scale; the whole row when None.
        threads: of the kernel; the result does not depend on it.
    """
    values = np.ascontiguousarray(values, np.float32)
    codes = np.empty(values.shape, np.uint8)
    _native.nearest_entries(
        values,
        np.ascontiguousarray(tables, np.float32),
        np.ascontiguousarray(scales, np.float32),
        codes,
        group or values.shape[1],
        threads or default_threads(),
    )
    return codes


def search_scales(
    values: Array,
    table: Array,
    *,
    group: int | None = None,
    importance: Array | None = None,
    factors: tuple[float, ...] = FACTORS,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The best scale for each group of numbers that share one fixed table.

    Tried are ``factor · max|group| / max|table|`` in float16 and, unless the table is symmetric,
    the same with the other sign.

    Args:
        values: ``[rows, columns]``, finite.
        table: ``[entries]``, ascending, not all 0.
        group: neighbours of a row that share a scale; the whole row when None.
        importance: as for `fit_tables`.
        factors: what is tried, as parts of the scale that reaches the largest number.
        threads: of the kernel; the result does not depend on it.

    Returns:
        Scales ``[rows, groups]``, 1 for a group of zeros, and what each costs: the weighted sum of
        squared errors, float64 (infinite for a group of zeros).
    """
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    group = group or columns
    table = np.ascontiguousarray(table, np.float32)
    shape = (rows, -(-columns // group))
    scales, costs = np.empty(shape, np.float32), np.empty(shape)
    _native.search_table_scales(
        values,
        _weights(importance, columns),
        group,
        table,
        np.asarray(factors, np.float32),
        1 if np.array_equal(table, -table[::-1]) else 2,
        scales,
        costs,
        threads or default_threads(),
    )
    return scales, costs


def _weights(importance: Array | None, columns: int) -> npt.NDArray[np.float32]:
    """Weights above 0, of mean 1: numbers that count for nothing still take their nearest entry."""
    if importance is None:
        return np.ones((1, columns), np.float32)
    weights = np.atleast_2d(np.asarray(importance, np.float64))
    mean = weights.mean()
    if not mean > 0.0:
        return np.ones(weights.shape, np.float32)
    return np.ascontiguousarray(weights / mean + 1e-9, np.float32)
