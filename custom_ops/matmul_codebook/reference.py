"""``MatMulCodebook`` in NumPy and float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["matmul_codebook_reference"]

Array = npt.NDArray[Any]

_LEAST = np.float32(2.0**-100)


def matmul_codebook_reference(
    x: npt.NDArray[np.float32], weight: npt.NDArray[np.float32], activation_bits: int
) -> npt.NDArray[np.float64]:
    """``x · weightᵀ``, x rounded first where ``activation_bits`` is 8.

    Args:
        x: ``[..., columns]``, finite.
        weight: ``[rows, columns]``: what `CodebookFormat.decode` gives.
        activation_bits: 8: each token is rounded to the nearest of 255 even steps (ties to even)
            up to its largest magnitude, which is taken to be 2^-100 at least. 32: x as it is.

    Returns:
        ``[..., rows]``.
    """
    values = x.astype(np.float64)
    if activation_bits == 8:
        most = np.maximum(np.abs(x).max(axis=-1, keepdims=True, initial=0), _LEAST)
        codes = np.rint(x * (np.float32(127) / most))  # in float32, as kernels round
        values = codes.astype(np.float64) * (most / np.float32(127))
    product: npt.NDArray[np.float64] = values @ weight.T.astype(np.float64)
    return product
