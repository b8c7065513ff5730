"""What ``onnxq.MatMulInt`` computes, in NumPy, as plainly as it can be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["matmul_int_reference", "rounded_tokens"]

_LEAST = np.float32(2.0**-100)


def rounded_tokens(a: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Codes and scales of tokens in int8.

    Args:
        a: ``[..., columns]``, float32 or float16, finite.

    Returns:
        Codes int8 ``[..., columns]`` and scales float32 ``[..., 1]``.
    """
    wide = a.astype(np.float32)
    largest = np.maximum(np.abs(wide).max(axis=-1, keepdims=True), _LEAST)
    codes = np.rint(wide * (np.float32(127) / largest)).astype(np.int8)
    return codes, largest / np.float32(127)


def matmul_int_reference(a: npt.NDArray[Any], weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """A · Wᵀ with tokens rounded to int8, in float64.

    Args:
        a: ``[..., columns]``, float32 or float16, finite.
        weight: ``[rows, columns]``, what `IntFormat.decode` gives.
    """
    codes, scales = rounded_tokens(a)
    return (codes.astype(np.float64) @ weight.astype(np.float64).T) * scales.astype(np.float64)
