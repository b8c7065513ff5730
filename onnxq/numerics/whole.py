"""Round to nearest with one scale for a whole weight: `rounding` with a single, huge group.

The kernel of `onnxq.numerics.rounding` works on 64 rows side by side, which a single group does not
have; here the range is found first and each row is rounded on its own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from onnxq.numerics.clipping import rounding_costs
from onnxq.numerics.histogram import find_range
from onnxq.numerics.rounding import Rounded, Rounding, round_groups_reference

__all__ = ["round_whole"]

_PIECE = 1 << 20  # elements converted or rounded at a time

Floats = npt.NDArray[np.float32]


def round_whole(weight: Floats, how: Rounding, *, threads: int | None = None) -> Rounded:
    """Round ``weight`` [rows, columns] float32; ``how.group`` is not looked at.

    Returns:
        Codes ``[rows, columns]``; scales and zeros ``[1, 1]``.

    Raises:
        FormatError: as for `onnxq.numerics.rounding.round_groups`.
    """
    flat = np.ascontiguousarray(weight, np.float32).reshape(-1)
    low, high, finite = find_range(flat, threads=threads)
    ends = np.array([[low if finite else np.nan, high]], np.float32)
    plain = dataclasses.replace(how, group=2)
    tried = [
        round_groups_reference(ends, dataclasses.replace(plain, shrink=(factor,)))
        for factor in how.shrink
    ]
    scales = np.array([one.scales[0, 0] for one in tried], np.float64)
    zeros = np.array([0 if one.zeros is None else one.zeros[0, 0] for one in tried], np.float64)
    chosen = tried[_cheapest(flat, scales, zeros, how)]
    zero = np.float32(0 if chosen.zeros is None else chosen.zeros[0, 0])
    codes = np.empty(flat.shape, np.int8 if how.symmetric else np.uint8)
    limits = np.float32(how.lowest) - zero, np.float32(how.highest) - zero
    for begin in range(0, flat.size, _PIECE):
        steps = flat[begin : begin + _PIECE] / chosen.scales[0, 0]
        np.clip(steps, *limits, out=steps)
        np.rint(steps, out=steps)
        steps += zero
        codes[begin : begin + _PIECE] = steps.astype(codes.dtype)
    return Rounded(codes.reshape(weight.shape), chosen.scales, chosen.zeros)


def _cheapest(
    flat: Floats, scales: npt.NDArray[np.float64], zeros: npt.NDArray[np.float64], how: Rounding
) -> int:
    """The place of the scale with the least sum of squared errors, the first on a tie."""
    if len(scales) == 1:
        return 0
    costs = np.zeros(len(scales))
    signs = np.sign(scales)
    for begin in range(0, flat.size, _PIECE):
        piece = flat[begin : begin + _PIECE].astype(np.float64)
        once = np.ones(piece.size)
        # All scales of a weight have the sign of the first.
        costs += rounding_costs(
            piece * signs[0], once, np.abs(scales), zeros, how.lowest, how.highest
        )
    return int(np.argmin(costs))
