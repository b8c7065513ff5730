"""Codes of an activation with one step for all of it, and the values they stand for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.numerics.powers import power_of_two_above
from onnxq.passes.qdq_targets import ActivationType

__all__ = ["Grid", "Parameters", "activation_parameters"]

Array = npt.NDArray[Any]

_LIMITS: dict[ActivationType, tuple[int, int]] = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The values that codes of one step stand for: scale · (code − zero) for each code.

    Attributes:
        scale: above 0.
        zero: the code of 0.
        lowest: code.
        highest: code.
    """

    scale: float
    zero: int
    lowest: int
    highest: int

    def rounded(self, rows: Array) -> Array:
        """The nearest values, half to even; float32 of the shape of ``rows``."""
        scale = np.float32(self.scale)
        codes = np.clip(np.rint(rows / scale) + self.zero, self.lowest, self.highest)
        return np.asarray((codes - self.zero) * scale, np.float32)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Scale and zero point of the codes of an activation: x ≈ scale · (code − zero)."""

    scale: float
    zero: int
    dtype: ActivationType

    @property
    def grid(self) -> Grid:
        """The values that the codes stand for."""
        lowest, highest = _LIMITS[self.dtype]
        return Grid(scale=self.scale, zero=self.zero, lowest=lowest, highest=highest)


def activation_parameters(
    low: float,
    high: float,
    *,
    dtype: ActivationType,
    symmetric: bool,
    power_of_two: bool = False,
) -> Parameters:
    """Scale and zero point that cover [low, high] and represent 0 exactly.

    Asymmetric: scale = (high − low) / 255, zero = round(qmin − low / scale). Symmetric int8:
    scale = max(|low|, |high|) / 127 and zero 0; symmetric uint8 has its zero at 128. A range of a
    single zero gets scale 1. ``power_of_two`` takes the next power of two for the scale.
    """
    qmin, qmax = _LIMITS[dtype]
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        scale, zero = max(-low, high) / 127.0, (qmin + qmax + 1) // 2
    else:
        scale, zero = (high - low) / (qmax - qmin), 0
    scale = float(np.float32(scale))
    if not scale >= float(np.finfo(np.float32).tiny):
        return Parameters(1.0, zero if symmetric else qmin, dtype)
    if power_of_two:
        scale = float(power_of_two_above(np.float32(scale)))
    if not symmetric:
        zero = int(np.clip(round(qmin - low / scale), qmin, qmax))
    return Parameters(scale, zero, dtype)
