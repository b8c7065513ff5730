"""Invertible matrices as functions of free parameters.

`KroneckerMatrix` is P = L ⊗ R with free square factors (FlatQuant, Sun et al., arXiv:2410.09426,
section 3.1). `DominantBlocks` are matrices that are strictly diagonally dominant whatever their
parameters are, hence invertible (Levy–Desplanques; AffineQuant, Ma et al., arXiv:2403.12544,
section 3.2).

Rows are multiplied on the right, x ↦ x P, so a weight with rows w (one for each output) that reads
x P instead of x becomes w P⁻ᵀ, and the product x wᵀ stays what it was.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from onnxq.numerics.hadamard import fast_apply

__all__ = ["DominantBlocks", "KroneckerMatrix", "factor_pair", "kronecker_rows", "mixing_matrix"]

_DOMINANCE = 0.95
"""What the sum of a row beside the diagonal may reach, as a part of the diagonal."""


def factor_pair(size: int) -> tuple[int, int]:
    """The factors a · b = size that are nearest to each other, a ≤ b."""
    first = math.isqrt(size)
    while size % first:
        first -= 1
    return first, size // first


def mixing_matrix(size: int, seed: int) -> npt.NDArray[np.float64]:
    """An orthogonal matrix [size, size] that spreads every channel over all others.

    The matrix of `onnxq.numerics.hadamard.fast_apply` (Hadamard where one is known) behind random
    signs.
    """
    signs = np.random.default_rng([seed, size]).choice([-1.0, 1.0], size)
    return np.asarray(fast_apply(np.diag(signs)))


def kronecker_rows(x: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """X (L ⊗ R) along the last axis, as two small products.

    Args:
        x: ``[..., a · b]``.
        left: ``[a, a]``.
        right: ``[b, b]``.
    """
    blocks = x.reshape(*x.shape[:-1], left.shape[0], right.shape[0])
    return (left.T @ (blocks @ right)).reshape(x.shape)


class KroneckerMatrix:
    """P = L ⊗ R.

    Attributes:
        left: parameter ``[a, a]``.
        right: parameter ``[b, b]``.
    """

    def __init__(self, left: npt.ArrayLike, right: npt.ArrayLike) -> None:
        """Begin with these factors."""
        self.left = torch.tensor(np.asarray(left), dtype=torch.float32, requires_grad=True)
        self.right = torch.tensor(np.asarray(right), dtype=torch.float32, requires_grad=True)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What is learned."""
        return [self.left, self.right]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """X P along the last axis."""
        return kronecker_rows(x, self.left, self.right)

    def unapply_weight(self, rows: torch.Tensor) -> torch.Tensor:
        """W P⁻ᵀ for the rows of a weight ``[rows, a · b]``."""
        left, right = torch.linalg.inv(self.left).T, torch.linalg.inv(self.right).T
        return kronecker_rows(rows, left, right)

    def factors(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """L and R as they will be stored: float32 values in float64."""
        left, right = (p.detach().numpy().astype(np.float64) for p in self.parameters)
        return left, right

    def condition(self) -> float:
        """‖P‖ ‖P⁻¹‖ in the spectral norm: the product of those of the factors."""
        return float(np.prod([np.linalg.cond(factor) for factor in self.factors()]))


class DominantBlocks:
    """n matrices A = D + α M ∘ T, each strictly diagonally dominant by rows.

    D is a positive diagonal and T what is beside it. The mask M lets through a band around the
    diagonal that widens from nothing at the start to everything at the end, and the stability
    factor α keeps what comes in small. Where a row of α M ∘ T would still sum to more than 0.95 of
    the diagonal it is scaled back, so that every A on the way can be inverted.

    Attributes:
        log_diagonal: parameter ``[n, size]``; D is its exponential.
        beside: parameter T ``[n, size, size]``.
        stability: α.
    """

    def __init__(self, count: int, size: int, stability: float) -> None:
        """Begin with the identity."""
        self.log_diagonal = torch.zeros(count, size, requires_grad=True)
        self.beside = torch.zeros(count, size, size, requires_grad=True)
        self.stability = stability

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What is learned."""
        return [self.log_diagonal, self.beside]

    def matrices(self, progress: float) -> torch.Tensor:
        """A ``[n, size, size]`` with the mask as it is ``progress`` (0 to 1) of the way."""
        size = self.beside.shape[-1]
        place = torch.arange(size)
        distance = (place[:, None] - place[None, :]).abs()
        width = math.floor(progress * (size - 1))
        mask = ((distance > 0) & (distance <= width)).to(self.beside.dtype)
        diagonal = torch.exp(self.log_diagonal)
        beside = self.stability * mask * self.beside
        sums = beside.abs().sum(dim=-1)
        shrink = torch.clamp(_DOMINANCE * diagonal / sums.clamp(min=1e-12), max=1.0)
        return torch.diag_embed(diagonal) + beside * shrink[..., None]
