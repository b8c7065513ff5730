"""What ``onnxq.MatMulLut`` computes, in NumPy, as plainly as it can be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.custom_ops.matmul_lut.function import BLOCK

__all__ = ["matmul_lut_reference"]


def matmul_lut_reference(
    a: npt.NDArray[Any], weight: npt.NDArray[np.float32], *, activation_bits: int
) -> npt.NDArray[np.float64]:
    """A · Wᵀ in float64 for a decoded weight.

    Args:
        a: ``[..., columns]``, float32 or float16.
        weight: ``[rows, columns]``, what the codes stand for (`LutFormat.decode`).
        activation_bits: 8 rounds A as the operator does, to int8 by runs of `BLOCK` columns, in
            float32; 32 takes it as it is.
    """
    used = a.astype(np.float32)
    if activation_bits == 8:
        columns = used.shape[-1]
        padded = np.pad(used.reshape(-1, columns), ((0, 0), (0, -columns % BLOCK)))
        blocks = padded.reshape(len(padded), -1, BLOCK)
        most = np.maximum(np.abs(blocks).max(axis=-1, keepdims=True), np.float32(1e-30))
        rounded = np.rint(blocks * (np.float32(127) / most)) * (most / np.float32(127))
        used = rounded.reshape(padded.shape)[:, :columns].reshape(a.shape)
    result: npt.NDArray[np.float64] = used.astype(np.float64) @ weight.T.astype(np.float64)
    return result
