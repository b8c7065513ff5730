"""What ``onnxq.MatMulTrellis`` computes, in NumPy and float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.custom_ops.matmul_int import rounded_tokens

__all__ = ["matmul_trellis_reference"]


def matmul_trellis_reference(
    a: npt.NDArray[Any], weight: npt.NDArray[Any], activation_bits: int = 8
) -> npt.NDArray[np.float64]:
    """A · Wᵀ.

    Args:
        a: ``[..., columns]``, float32 or float16, finite.
        weight: ``[rows, columns]``, what `TrellisFormat.decode` gives.
        activation_bits: 8, tokens rounded to int8; 32, as they are.
    """
    wide = weight.astype(np.float64).T
    if activation_bits == 32:
        return a.astype(np.float64) @ wide
    codes, scales = rounded_tokens(a)
    return (codes.astype(np.float64) @ wide) * scales.astype(np.float64)
