"""Scales of two levels: a float32 scale for each row, times a small integer for each group.

``scales[row, group] = row_scale[row] * ratio[row, group]``, exactly: row scales keep 17 bits of
their mantissa, so that no product with a ratio is rounded. Ratios are small enough that
``(code - zero) * ratio`` fits int8: a kernel may then fold them into the weight and sum all columns
of a row in int32, where scales of one level need a float product for every group. Source: Zhang et
al., "Dual Grained Quantization" (DGQ, arXiv:2310.04836, section 3.1); Zhang et al., "QQQ"
(arXiv:2406.09904, section 3.3); here ratios may be negative, as scales are.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError

__all__ = ["largest_ratio", "round_scales", "row_scales", "scales_on_rows", "split_scales"]

Array = Any
_SPLIT = float(2**7 + 1)  # Veltkamp's constant: 7 bits of a float32 are cut off
_FAR = 4.0
_SHORTEST = 0.5
"""How far below the largest ratio that of the largest scale may be, as a part of it."""


def largest_ratio(bits: int, symmetric: bool) -> int:
    """The largest ratio for which ``(code - zero) * ratio`` fits int8."""
    most: int = 2 ** (bits - 1) if symmetric else 2**bits - 1
    return 127 // most


def row_scales(scales: Array, largest: int) -> Array:
    """Row scales whose multiples come nearest to ``scales``.

    The largest scale of a row may be any multiple from half of ``largest`` on: the one with the
    least sum of squared relative errors is taken.

    Args:
        scales: ``[rows, groups]``, none of them 0; NumPy or torch.
        largest: see `largest_ratio`.

    Returns:
        float32 ``[rows, 1]``.
    """
    xp = array_api_compat.array_namespace(scales)
    single = xp.astype(scales, xp.float32)
    top = _top(xp, xp.abs(single))
    best, least = None, None
    for ratio in range(largest, int(largest * _SHORTEST), -1):
        rows = _shortened(top / ratio)
        error = scales_on_rows(single, rows, largest) / single - 1
        error = xp.where(xp.abs(single) > top, xp.zeros_like(error), error)
        cost = xp.sum(error * error, axis=1, keepdims=True)
        if best is None:
            best, least = rows, cost
        else:
            best = xp.where(cost < least, rows, best)
            least = xp.minimum(cost, least)
    return best


def scales_on_rows(scales: Array, rows: Array, largest: int) -> Array:
    """``scales`` ``[rows, groups]`` as multiples of row scales ``[rows, 1]``, float32."""
    xp = array_api_compat.array_namespace(scales)
    single = xp.astype(scales, xp.float32)
    ratios = xp.clip(xp.round(xp.abs(single) / rows), 1, largest)
    return rows * xp.where(single < 0, -ratios, ratios)


def round_scales(scales: Array, largest: int) -> Array:
    """Scales of two levels, float32, near to ``scales`` ``[rows, groups]``."""
    return scales_on_rows(scales, row_scales(scales, largest), largest)


def split_scales(
    scales: npt.NDArray[np.float32], largest: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Undo the product: row scales ``[rows, 1]`` and ratios int8 ``[rows, groups]``.

    Raises:
        FormatError: a row whose scales are no multiples, 1 to ``largest``, of one number.
    """
    top = np.abs(scales).max(axis=1, keepdims=True)
    rows = np.zeros_like(top)
    ratios = np.zeros(scales.shape, np.float32)
    for ratio in range(largest, 0, -1):
        trial = top / np.float32(ratio)
        rounded = scales_on_rows(scales, trial, largest)
        fits = (rounded == scales).all(axis=1, keepdims=True) & (rows == 0)
        rows = np.where(fits, trial, rows)
        ratios = np.where(fits, np.rint(scales / np.where(trial > 0, trial, 1)), ratios)
    if not (rows > 0).all():
        row = int(np.argmin(rows[:, 0]))
        raise FormatError(
            f"the scales of row {row} are not of two levels, multiples of 1 to {largest} of one "
            "number: round them by IntFormat.stored_scales before codes are chosen."
        )
    return rows, ratios.astype(np.int8)


def _top(xp: Any, magnitudes: Array) -> Array:
    """The largest scale of each row ``[rows, 1]``.

    A group of zeros has a scale of 1 (see `onnxq.numerics.rounding`), which says nothing of how
    large it should be: where 1 is far from all others it does not count.
    """
    top = xp.max(magnitudes, axis=1, keepdims=True)
    others = xp.where(magnitudes == 1, xp.zeros_like(magnitudes), magnitudes)
    rest = xp.max(others, axis=1, keepdims=True)
    return xp.where((rest > 0) & (top == 1) & (_FAR * rest < 1), rest, top)


def _shortened(rows: Array) -> Array:
    """float32 numbers rounded to 17 bits."""
    stretched = rows * _SPLIT
    return stretched - (stretched - rows)
