"""What ``onnxq.MatMulCodebook`` computes, in NumPy and float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.custom_ops.matmul_int import rounded_tokens

__all__ = ["matmul_codebook_reference"]

Array = npt.NDArray[Any]


def matmul_codebook_reference(
    a: Array, weight: Array, *, activation_bits: int = 8
) -> npt.NDArray[np.float64]:
    """A · Wᵀ, tokens rounded to int8 first where ``activation_bits`` is 8.

    Args:
        a: ``[..., columns]``, float32 or float16, finite.
        weight: ``[rows, columns]``: what `CodebookFormat.decode` gives.
        activation_bits: 8, or 32 for tokens as they are.

    Returns:
        ``[..., rows]``.
    """
    wide = a.astype(np.float64)
    if activation_bits == 8:
        codes, scales = rounded_tokens(a)
        wide = codes.astype(np.float64) * scales.astype(np.float64)
    product: npt.NDArray[np.float64] = wide @ weight.T.astype(np.float64)
    return product
