"""Nearest: every weight takes the code closest to it, with no regard to the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats import Arrays, Format
from onnxq.numerics.rounding import MINMAX, MSE_GRID

__all__ = ["Search", "nearest"]

Search = Literal["minmax", "mse"]


def nearest(
    weight: npt.NDArray[Any],
    fmt: Format,
    statistics: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    seed: int = 0,
    search: Search = "minmax",
) -> Arrays:
    """Round to nearest (RTN).

    Args:
        weight: ``[rows, columns]`` = ``[out, in]``, a float type.
        fmt: the format to store it in.
        statistics: not used; every solver takes it.
        seed: not used, nothing is random; every solver takes it.
        search: ``minmax`` covers the whole range of each group; ``mse`` tries the factors of
            `onnxq.numerics.rounding.MSE_GRID` on each scale and keeps the one with the least sum
            of squared errors, which is never worse than ``minmax`` on the weight itself.

    Returns:
        The arrays of ``fmt.encode``.

    Raises:
        FormatError: the weight cannot be stored (see `IntFormat.encode`), or ``search`` is
            neither of the two.
    """
    del statistics, seed
    if search not in ("minmax", "mse"):
        raise FormatError(f"search is {search!r}; choose 'minmax' or 'mse'.")
    return fmt.encode(weight, shrink=MSE_GRID if search == "mse" else MINMAX)
