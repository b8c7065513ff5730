"""Descent among orthogonal matrices, which the Stiefel manifold of square ones is.

For a matrix X and the gradient G of a function at X, the part of G along the manifold is X A with
A = (XᵀG − GᵀX) / 2 skew-symmetric. A step goes along it and back onto the manifold:

- `StiefelAdam`: first moments along the manifold, one second moment for the whole matrix, as in
  Riemannian Adam (Bécigneul & Ganea, arXiv:1810.00760), then the orthogonal factor of a QR. This is
  what OSTQuant trains with (Hu et al., arXiv:2501.13987, section 3.3).
- `CayleySgd`: momentum, then X (I + τA/2)⁻¹ (I − τA/2), which is orthogonal for every skew A: the
  Cayley transform (Li et al., arXiv:2002.01113; SpinQuant, Liu et al., arXiv:2405.16406, section
  3.2).

The rate is relative: a step turns the matrix by that part of its own norm.
"""

from __future__ import annotations

import abc
import math

import torch

__all__ = ["CayleySgd", "StiefelAdam", "StiefelDescent"]


class StiefelDescent(abc.ABC):
    """Moves one orthogonal matrix; keep one for each."""

    @abc.abstractmethod
    def step(self, matrix: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
        """The matrix after one step.

        Args:
            matrix: orthogonal float64 ``[n, n]``.
            gradient: of what is minimized, ``[n, n]``.
            rate: how far to go, as a part of the norm of the matrix.

        Returns:
            A new orthogonal matrix.
        """


class StiefelAdam(StiefelDescent):
    """Adam on the manifold; see the module."""

    def __init__(self, momentum: float = 0.9, memory: float = 0.99) -> None:
        """Begin without moments.

        Args:
            momentum: decay of the first moment.
            memory: decay of the second.
        """
        self._betas = momentum, memory
        self._first: torch.Tensor | None = None
        self._second = 0.0
        self._count = 0

    def step(self, matrix: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
        """Along the mean direction, and back by a QR with positive diagonal."""
        along = _along(matrix, gradient)
        if self._first is None:
            self._first = torch.zeros_like(along)
        momentum, memory = self._betas
        self._count += 1
        self._first = momentum * self._first + (1.0 - momentum) * along
        self._second = memory * self._second + (1.0 - memory) * float((along * along).sum())
        first = self._first / (1.0 - momentum**self._count)
        second = math.sqrt(self._second / (1.0 - memory**self._count))
        if second == 0.0:
            return matrix
        length = math.sqrt(matrix.shape[0])
        moved = _retracted(matrix - rate * length / second * (matrix @ first))
        # Moments are kept in coordinates at the matrix (skew), which go along with it.
        return moved


class CayleySgd(StiefelDescent):
    """Gradient descent with momentum by the Cayley transform; see the module."""

    def __init__(self, momentum: float = 0.9) -> None:
        """Begin at rest.

        Args:
            momentum: decay of the velocity.
        """
        self._momentum = momentum
        self._velocity: torch.Tensor | None = None

    def step(self, matrix: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
        """Turn by the Cayley transform of the velocity, scaled to the rate."""
        along = _along(matrix, gradient)
        size = float(torch.linalg.matrix_norm(along))
        if size > 0.0:
            along = along / size
        before = torch.zeros_like(along) if self._velocity is None else self._velocity
        self._velocity = self._momentum * before + (1.0 - self._momentum) * along
        half = 0.5 * rate * math.sqrt(matrix.shape[0]) * self._velocity
        one = torch.eye(matrix.shape[0], dtype=matrix.dtype)
        return torch.linalg.solve(one + half.T, (matrix @ (one - half)).T).T


def _along(matrix: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A, skew-symmetric, of the gradient X A along the manifold."""
    inner = matrix.T @ gradient
    return 0.5 * (inner - inner.T)


def _retracted(matrix: torch.Tensor) -> torch.Tensor:
    """The orthogonal factor of a QR whose triangular factor has a positive diagonal."""
    orthogonal, upper = torch.linalg.qr(matrix)
    signs = torch.where(torch.diagonal(upper) < 0, -1.0, 1.0).to(matrix.dtype)
    return orthogonal * signs
