"""What ``onnxq.Hadamard`` computes, in NumPy, as plainly as it can be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.numerics.hadamard import sylvester

__all__ = ["hadamard_reference"]


def hadamard_reference(
    x: npt.NDArray[Any], factor: npt.NDArray[Any], size: int
) -> npt.NDArray[np.float64]:
    """Rotate each run of ``size`` entries along the last axis by F ⊗ S / √(2ᵏ), in float64.

    Args:
        x: ``[..., c]`` with c a multiple of ``size``.
        factor: F, ``[m, m]`` with ``size`` = m · 2ᵏ.
        size: n.
    """
    power = size // len(factor)
    matrix = np.kron(factor.astype(np.float64), sylvester(power)) / np.sqrt(power)
    rows = x.astype(np.float64).reshape(-1, size)
    rotated: npt.NDArray[np.float64] = (rows @ matrix).reshape(x.shape)
    return rotated
