"""Rounding that keeps sums: few codes are rounded the other way so that errors cancel.

Activations behind a ReLU are positive, so a layer sees x = μ + noise with a large μ, and what
hurts is Σ ΔW·μ, not ΔW itself: a depthwise kernel that subtracts neighbours turns a rounding error
of its sum into a constant offset of a whole channel. Flipping the codes that were closest to the
other integer brings |Σ ΔW| below half a step. No data are needed. Guo et al., "SQuant: On-the-Fly
Data-Free Quantization via Diagonal Hessian Approximation" (ICLR 2022), section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["preserve_sums"]


def preserve_sums(
    exact: npt.NDArray[Any], codes: npt.NDArray[Any], *, kernel: int, limit: int
) -> npt.NDArray[np.int8]:
    """Flip codes until the errors of every kernel, and then of every row, add up to almost 0.

    Args:
        exact: ``[rows, columns]``, weights in units of their scale.
        codes: ``[rows, columns]``, the nearest integers in ±limit.
        kernel: how many neighbouring columns belong to one kernel (1 for a matrix).
        limit: largest code; codes there are not flipped outwards.

    Returns:
        int8 ``[rows, columns]``. Every code is one of the two integers around its weight, and
        ``|Σ (codes − exact)| ≤ 1/2`` for every row, unless the limit forbids it.
    """
    rows, columns = exact.shape
    result = codes.astype(np.float64)
    wanted = exact.astype(np.float64)
    if 1 < kernel < columns:
        groups = (rows * (columns // kernel), kernel)
        _flip(wanted.reshape(groups), inner := result.reshape(groups).copy(), limit)
        result = inner.reshape(rows, columns)
    _flip(wanted, result, limit)
    return result.astype(np.int8)


def _flip(exact: npt.NDArray[Any], codes: npt.NDArray[Any], limit: int) -> None:
    """Flip the fewest and cheapest codes of every row, in place, until its errors add up."""
    error = codes - exact
    total = np.rint(error.sum(axis=1))
    direction = np.sign(total)[:, None]
    # Only an error in the direction of the sum can be flipped, and only once: it stays below 1.
    gain = error * direction
    allowed = (gain > 0) & (np.abs(codes - direction) <= limit)
    order = np.argsort(np.where(allowed, -gain, np.inf), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(exact.shape[1])[None, :], axis=1)
    codes -= np.where(allowed & (rank < np.abs(total)[:, None]), direction, 0.0)
