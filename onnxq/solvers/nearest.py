"""Nearest: every weight takes the code closest to it, with no regard to the others."""

from __future__ import annotations

import numpy as np

from onnxq.formats import Arrays, Format, VectorFormat
from onnxq.numerics.grid_costs import Array
from onnxq.numerics.rounding import MINMAX, MSE_GRID
from onnxq.solvers.grids import Search, choose_grid, importance_of, round_on_grid
from onnxq.solvers.inputs import require_integers, to_numpy
from onnxq.solvers.statistics import Statistics

__all__ = ["Search", "nearest"]


def nearest(
    weight: Array,
    fmt: Format,
    statistics: Statistics | None = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    search: Search = "minmax",
) -> Arrays:
    """Round to nearest (RTN).

    Args:
        weight: ``[rows, columns]`` = ``[out, in]``, a float type; NumPy or torch.
        fmt: the format to store it in.
        statistics: of its input; the diagonal of H then weights the squared errors that the
            search looks at. Not needed.
        seed: of what formats of points choose at random; not used for integers.
        threads: of the kernel; the result does not depend on it.
        search: how scales and zero points of integers are chosen, see
            `onnxq.numerics.scale_search`: ``minmax`` covers the whole range of each
            group, ``mse`` shrinks it to the least squared error, ``neuqi`` looks for the best
            scale and zero point together, ``hqq`` minimises a sum in which large errors count for
            less.

    Returns:
        The arrays of ``fmt.encode``.

    Raises:
        FormatError: the weight cannot be stored (see `IntFormat.encode`), or ``search`` is none
            of the four.
    """
    columns = int(weight.shape[1])
    if isinstance(fmt, VectorFormat):
        costs = importance_of(statistics, columns)
        costs = None if costs is None else to_numpy(costs)
        return fmt.encode(to_numpy(weight), importance=costs, seed=seed, threads=threads)
    fmt = require_integers("nearest", fmt)
    plain = search == "minmax" or (search == "mse" and statistics is None)
    if plain and isinstance(weight, np.ndarray):
        shrink = MSE_GRID if search == "mse" else MINMAX
        return fmt.encode(weight, shrink=shrink, threads=threads)
    importance = None
    if search != "minmax":
        importance = importance_of(statistics, columns)
    scales, zeros = choose_grid(weight, fmt, search=search, importance=importance, threads=threads)
    return round_on_grid(weight, fmt, scales, zeros, threads=threads)
