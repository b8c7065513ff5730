"""How much a format loses at its rate, on weights of the normal distribution.

No code of R bits per weight comes below a mean squared error of 2^(−2R) on independent weights of
N(0, 1) (Shannon; Cover and Thomas, Elements of Information Theory, theorem 10.3.2). Random
rotations make weights look like that, so formats can be compared by it without a model.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxq.formats.base import Format

__all__ = ["Distortion", "gaussian_distortion"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distortion:
    """What was measured.

    Attributes:
        bits: R, stored bits per weight of the measured matrix, everything counted.
        squared_error: mean over the weights, whose variance is 1.
    """

    bits: float
    squared_error: float

    @property
    def bound(self) -> float:
        """The least mean squared error of any code with as many bits, 2^(−2R)."""
        return float(2.0 ** (-2 * self.bits))

    @property
    def ratio(self) -> float:
        """The squared error over the bound, 1 or more."""
        return self.squared_error / self.bound


def gaussian_distortion(
    fmt: Format, *, size: int = 1024, seed: int = 0, threads: int | None = None
) -> Distortion:
    """Round ``size`` × ``size`` weights of N(0, 1) to nearest and read back what would be stored.

    Args:
        fmt: the format.
        size: rows, and columns; 1024 are 2^20 weights.
        seed: of the weights.
        threads: of kernels; the result does not depend on it.

    Raises:
        FormatError: the format refuses a matrix of this size.
    """
    weight = np.random.default_rng(seed).standard_normal((size, size), np.float32)
    packed = fmt.pack(fmt.encode(weight, threads=threads))
    error = fmt.decode(fmt.unpack(packed, (size, size))).astype(np.float64) - weight
    return Distortion(
        bits=fmt.bits_per_weight((size, size)), squared_error=float(np.mean(np.square(error)))
    )
