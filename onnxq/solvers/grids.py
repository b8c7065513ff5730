"""Grids and codes for every granularity: the one place where solvers get their scales from."""

from __future__ import annotations

import array_api_compat
import numpy as np

from onnxq.errors import FormatError
from onnxq.formats import Arrays, IntFormat, PerBlock, PerTensor
from onnxq.formats.base import check_weight
from onnxq.numerics.grid_costs import Array, GridCosts, kernel_readable
from onnxq.numerics.rounding import MINMAX, MSE_GRID
from onnxq.numerics.scale_search import (
    ScaleGrid,
    Search,
    checked_importance,
    round_to,
    search_scales,
)
from onnxq.solvers.statistics import Statistics

__all__ = ["Search", "choose_grid", "importance_of", "round_on_grid", "rows_per_scale"]


def choose_grid(
    weight: Array,
    fmt: IntFormat,
    *,
    search: Search = "minmax",
    importance: Array | None = None,
    threads: int | None = None,
) -> tuple[Array, Array | None]:
    """Choose the scales and zero points with which a weight is stored.

    Args:
        weight: ``[rows, columns]``, a float type; NumPy or torch.
        fmt: the format: its granularity says which weights share a scale.
        search: how they are chosen, see `onnxq.numerics.scale_search`.
        importance: ``[columns]``, what a squared error of each column counts; see
            `importance_of`. ``minmax`` does not use it.
        threads: of the kernel; the result does not depend on it.

    Returns:
        ``scales`` in ``fmt.scale_dtype`` and ``zeros`` uint8 (None when symmetric), both shaped by
        the granularity. Without importance, ``minmax`` and ``mse`` are those of ``fmt.encode``.

    Raises:
        FormatError: the weight cannot be stored (see `IntFormat.encode`), an unknown search, or
            importances that do not fit.
    """
    if isinstance(weight, np.ndarray):
        check_weight(weight)
        whole = isinstance(fmt.granularity, PerTensor | PerBlock)
        if whole and (search == "minmax" or (search == "mse" and importance is None)):
            shrink = MSE_GRID if search == "mse" else MINMAX
            encoded = fmt.encode(weight, shrink=shrink, threads=threads)
            return encoded["scales"], encoded.get("zeros")
    rows, columns = (int(size) for size in weight.shape)
    how = fmt.rounding(fmt.group_size(columns))
    grid = search_scales(
        weight,
        how,
        method=search,
        importance=importance,
        threads=threads,
        span=rows_per_scale(fmt, rows),
    )
    return fmt.stored_scales(grid.scales), grid.zeros


def round_on_grid(
    weight: Array,
    fmt: IntFormat,
    scales: Array,
    zeros: Array | None = None,
    *,
    threads: int | None = None,
) -> Arrays:
    """Round every weight to the nearest code of a grid that `choose_grid` has chosen.

    Returns:
        ``codes`` ``[rows, columns]``, and ``scales`` and ``zeros`` as given: see
        `IntFormat.encode`.

    Raises:
        FormatError: NaN or infinity in the weight.
    """
    rows, columns = (int(size) for size in weight.shape)
    how = fmt.rounding(fmt.group_size(columns))
    xp = array_api_compat.array_namespace(scales)
    grid = ScaleGrid(xp.astype(scales, xp.float32, copy=False), zeros)
    codes = round_to(weight, how, grid, threads=threads, span=rows_per_scale(fmt, rows))
    arrays: Arrays = {"codes": codes, "scales": scales}
    return arrays if zeros is None else {**arrays, "zeros": zeros}


def group_costs(
    weight: Array,
    fmt: IntFormat,
    scales: Array,
    zeros: Array | None = None,
    *,
    importance: Array | None = None,
    threads: int | None = None,
) -> Array:
    """What rounding to the nearest code of a grid costs: Σ h (w - Q(w))² of all that share a scale.

    Returns:
        float64, shaped like ``scales``, in squared units of the weight times those of importance.

    Raises:
        FormatError: as for `choose_grid`.
    """
    rows, columns = (int(size) for size in weight.shape)
    weight = kernel_readable(weight)
    xp = array_api_compat.array_namespace(scales)
    problem = GridCosts(
        weight=weight,
        how=fmt.rounding(fmt.group_size(columns)),
        importance=checked_importance(importance, weight),
        span=rows_per_scale(fmt, rows),
        threads=threads,
    )
    scale = xp.astype(scales, xp.float32)[None, ...]
    zero = None if zeros is None else xp.astype(zeros, xp.float32)[None, ...]
    cost = problem.costs(scale, zero)[0, ...]
    return cost if importance is None else cost * (float(xp.max(importance)) or 1.0)


def importance_of(statistics: Statistics | None, columns: int) -> Array | None:
    """The diagonal of H, which is what a squared error of each column counts on its own.

    Raises:
        FormatError: H is not ``[columns, columns]``.
    """
    if statistics is None:
        return None
    hessian = statistics.hessian
    if tuple(hessian.shape) != (columns, columns):
        raise FormatError(
            f"statistics of {list(hessian.shape)} do not fit a weight of {columns} columns: gather "
            "them on the input of this weight."
        )
    xp = array_api_compat.array_namespace(hessian)
    diagonal = xp.linalg.diagonal(hessian)
    # A sum of squares; a tiny negative number is what is left of 0 after subtractions.
    return xp.clip(diagonal, 0.0, None)


def rows_per_scale(fmt: IntFormat, rows: int) -> int:
    """How many rows of a weight with ``rows`` of them share a scale."""
    if isinstance(fmt.granularity, PerTensor):
        return rows
    return fmt.granularity.rows if isinstance(fmt.granularity, PerBlock) else 1
