"""Two-sided rotation of one weight, so that none of its entries is large: QuIP.

For orthogonal U and V, rows and columns of a weight W [rows, columns] are mixed,

    W̃ = Uᵀ W V,     H̃ = Vᵀ H V,     W x = U (W̃ (Vᵀ x)),

and what matters of a rounding error stays: tr((W − Ŵ) H (W − Ŵ)ᵀ) = tr((W̃ − W̃̂) H̃ (W̃ − W̃̂)ᵀ). With
random U and V the largest entry of W̃ is, with high probability, within a logarithm of the mean:
μ = max |W̃_ij| √(mn) / ‖W̃‖ ≤ 2 log(4 m n / δ) (Chee et al., QuIP, arXiv:2307.13304, section 4;
randomized Hadamard matrices instead of dense ones: Tseng et al., QuIP#, arXiv:2402.04396, section
3). A codebook that fits Gaussian numbers then fits every weight.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.numerics.rotation import Rotation, make_rotation

__all__ = ["TwoSided", "incoherence", "two_sided"]

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoSided:
    """The rotations of one weight.

    Attributes:
        rows: U, of the outputs.
        columns: V, of the inputs.
    """

    rows: Rotation
    columns: Rotation

    def rotate(self, weight: Array) -> npt.NDArray[np.float64]:
        """W̃ = Uᵀ W V of a weight ``[rows, columns]``."""
        self._check(weight.shape)
        return self.columns.apply(self.rows.apply(weight.T).T)

    def restore(self, weight: Array) -> npt.NDArray[np.float64]:
        """W = U W̃ Vᵀ, what `rotate` was given."""
        self._check(weight.shape)
        return self.columns.undo(self.rows.undo(weight.T).T)

    def rotate_hessian(self, hessian: Array) -> npt.NDArray[np.float64]:
        """H̃ = Vᵀ H V of the inputs, ``[columns, columns]``."""
        if hessian.shape != (self.columns.size,) * 2:
            raise FormatError(
                f"a Hessian of shape {list(hessian.shape)} does not fit {self.columns.size} inputs."
            )
        return self.columns.apply(self.columns.apply(hessian).T)

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape != (self.rows.size, self.columns.size):
            raise FormatError(
                f"a weight of shape {list(shape)} does not fit rotations of "
                f"[{self.rows.size}, {self.columns.size}]: give it as [outputs, inputs]."
            )


def two_sided(
    rows: int, columns: int, *, kind: str = "randomized_hadamard", seed: int = 0
) -> TwoSided:
    """Rotations for a weight ``[rows, columns]``, different ones for its two sides.

    Args:
        rows: outputs.
        columns: inputs.
        kind: see `onnxq.numerics.rotation.make_rotation`.
        seed: of the random kinds.
    """
    return TwoSided(
        rows=make_rotation(kind, rows, seed=2 * seed),
        columns=make_rotation(kind, columns, seed=2 * seed + 1),
    )


def incoherence(weight: Array) -> float:
    """The μ of a weight: max |W_ij| √(mn) / ‖W‖ (Frobenius); 1 is least, √(mn) most.

    0 for a weight of zeros.
    """
    wide = np.asarray(weight, np.float64)
    norm = float(np.linalg.norm(wide))
    return float(np.abs(wide).max() * wide.size**0.5 / norm) if norm else 0.0
