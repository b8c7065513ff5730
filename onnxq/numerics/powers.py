"""Powers of two, which fixed-point processors multiply by with a shift."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["power_of_two_above"]


def power_of_two_above(values: np.ndarray[Any, Any] | np.floating[Any]) -> np.ndarray[Any, Any]:
    """The smallest power of two that is not below, of each; of the dtype and shape of ``values``.

    Args:
        values: finite floats above 0.
    """
    mantissa, exponent = np.frexp(values)  # value = mantissa · 2^exponent, mantissa in [1/2, 1)
    exact = (mantissa == 0.5).astype(exponent.dtype)
    powers: np.ndarray[Any, Any] = np.ldexp(np.ones_like(mantissa), exponent - exact)
    return powers
