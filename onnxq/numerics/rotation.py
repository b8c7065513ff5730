"""Orthogonal matrices to rotate channels with, held in the form in which they are cheap to apply.

A row vector x becomes x Q, and Q Qᵀ = I. `make_rotation` knows

* ``hadamard``: H / √n (`onnxq.numerics.hadamard`: the rule for every n);
* ``randomized_hadamard``: diag(±1) H / √n with random signs (QuIP#, Tseng et al. 2024,
  arXiv:2402.04396, section 3; QuaRot, Ashkboos et al. 2024, arXiv:2404.00456);
* ``block_hadamard``: I ⊗ H_b / √b, which keeps what blocks of b channels hold together;
* ``orthogonal``: uniform (Haar) among all, the Q of the QR of Gaussian numbers with the signs of R
  taken out (Mezzadri 2007, arXiv:math-ph/0609050, section 5);
* ``klt``: the eigenvectors U of a covariance, of the largest eigenvalue first, so that the rotated
  channels are uncorrelated (ResQ, Saxena et al. 2024, arXiv:2412.14363; QUAD, arXiv:2503.19353);
* ``klt_hadamard``: U H / √n, which then gives all of them the same variance, the mean of the
  eigenvalues: no Hadamard matrix alone can promise that (MambaQuant, Xu et al. 2025,
  arXiv:2501.13484, section 4). With ``apart`` r, U diag(H_r / √r, H_{n−r} / √(n−r)): the r largest
  components share their variance among themselves, and so do the others (ResQ, section 4.2).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.numerics.hadamard import factor_size, fast_apply

__all__ = ["KINDS", "Kind", "Rotation", "as_rotation", "first_part", "make_rotation", "orthogonal"]

Array = npt.NDArray[Any]
Kind = Literal[
    "hadamard", "randomized_hadamard", "block_hadamard", "orthogonal", "klt", "klt_hadamard"
]
KINDS: tuple[str, ...] = get_args(Kind)
"""The names that `make_rotation` knows."""

_TOLERANCE = 1e-10
"""Largest entry of Q Qᵀ − I of a matrix that is taken for orthogonal; float64 makes 1e-14."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rotation:
    """Q = diag(signs) · dense · (I ⊗ H_block / √block); a factor that is None is left out.

    Attributes:
        size: channels n.
        label: what it is, for reports.
        signs: ±1, float64 [n].
        dense: orthogonal float64 [n, n].
        block: order of the Hadamard matrix, n or a divisor of it.
    """

    size: int
    label: str
    signs: npt.NDArray[np.float64] | None = None
    dense: npt.NDArray[np.float64] | None = None
    block: int | None = None

    def apply(self, x: Array) -> Array:
        """Multiply rows: x Q, ``[..., n]`` of float64, to a new array of the same shape."""
        turned: Array = np.array(x, np.float64)
        if self.signs is not None:
            turned *= self.signs
        if self.dense is not None:
            turned = turned @ self.dense
        return turned if self.block is None else fast_apply(turned, self.block)

    def undo(self, x: Array) -> Array:
        """Multiply rows by the inverse: x Qᵀ."""
        turned: Array = np.array(x, np.float64)
        if self.block is not None:
            turned = fast_apply(turned, self.block, transposed=True)
        if self.dense is not None:
            turned = turned @ self.dense.T
        return turned if self.signs is None else turned * self.signs

    @property
    def inverse(self) -> Rotation:
        """The rotation that undoes this one."""
        return Rotation(size=self.size, label=f"{self.label}, undone", dense=self.matrix.T)

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """Q itself, float64 [n, n]."""
        return self.apply(np.eye(self.size))


def make_rotation(
    kind: str,
    size: int,
    *,
    seed: int = 0,
    block: int | None = None,
    covariance: Array | None = None,
    apart: int = 0,
) -> Rotation:
    """An orthogonal matrix of one of the kinds of the module docstring.

    Args:
        kind: one of `KINDS`.
        size: channels n.
        seed: of the random ones.
        block: of ``block_hadamard``, a divisor of n; when None the largest power of two that
            divides n.
        covariance: for the ``klt`` kinds, symmetric positive semidefinite [n, n].
        apart: of ``klt_hadamard``, how many of the largest components are mixed apart.

    Raises:
        FormatError: an unknown kind, a block that does not divide n, more channels apart than
            there are, or a covariance that is missing, of another size or not finite.
    """
    generator = np.random.default_rng(seed)
    if kind == "hadamard":
        return Rotation(size=size, label=f"Hadamard {factor_size(size)}", block=size)
    if kind == "randomized_hadamard":
        signs = generator.choice(np.array([-1.0, 1.0]), size)
        label = f"Hadamard {factor_size(size)} with random signs (seed {seed})"
        return Rotation(size=size, label=label, signs=signs, block=size)
    if kind == "block_hadamard":
        width = size & -size if block is None else block
        if width < 1 or size % width:
            raise FormatError(
                f"blocks of {width} do not divide {size} channels: choose a divisor, or none."
            )
        label = f"{size // width} blocks of Hadamard {factor_size(width)}"
        return Rotation(size=size, label=label, block=width)
    if kind == "orthogonal":
        label = f"random orthogonal {size} (seed {seed})"
        return Rotation(size=size, label=label, dense=_haar(generator, size))
    if kind in ("klt", "klt_hadamard"):
        vectors = _eigenvectors(covariance, size)
        if kind == "klt":
            return Rotation(size=size, label=f"KLT {size}", dense=vectors)
        if apart:
            return _mixed_apart(vectors, apart)
        label = f"KLT {size} · Hadamard {factor_size(size)}"
        return Rotation(size=size, label=label, dense=vectors, block=size)
    raise FormatError(f"there is no rotation {kind!r}: choose one of {', '.join(KINDS)}.")


def first_part(channels: int, share: float, multiple: int = 32) -> int:
    """A share of the channels in whole groups of ``multiple``, at least one: those kept apart."""
    return max(1, round(share * channels / multiple)) * multiple


def _mixed_apart(vectors: npt.NDArray[np.float64], apart: int) -> Rotation:
    """U diag(H_r / √r, H_{n−r} / √(n−r)) of eigenvectors U ``[n, n]``, r channels apart."""
    size = len(vectors)
    if not 0 < apart < size:
        raise FormatError(f"{apart} of {size} channels cannot be mixed apart from the others.")
    mixed = [fast_apply(part, part.shape[1]) for part in np.split(vectors, [apart], axis=1)]
    label = (
        f"KLT {size} · Hadamard {factor_size(apart)} of the first and "
        f"{factor_size(size - apart)} of the others"
    )
    return Rotation(size=size, label=label, dense=np.concatenate(mixed, axis=1))


def orthogonal(
    kind: str, size: int, seed: int = 0, *, covariance: Array | None = None
) -> npt.NDArray[np.float64]:
    """The matrix Q ``[n, n]`` float64 of `make_rotation`."""
    return make_rotation(kind, size, seed=seed, covariance=covariance).matrix


def as_rotation(matrix: Rotation | Array) -> Rotation:
    """A given matrix as a rotation.

    Raises:
        FormatError: it is not square, not finite, or Q Qᵀ differs from I by more than 1e-10.
    """
    if isinstance(matrix, Rotation):
        return matrix
    dense = np.asarray(matrix, np.float64)
    if dense.ndim != 2 or dense.shape[0] != dense.shape[1] or not np.isfinite(dense).all():
        raise FormatError(f"a rotation is a square matrix of numbers, not {list(dense.shape)}.")
    error = float(np.abs(dense @ dense.T - np.eye(len(dense))).max(initial=0.0))
    if error > _TOLERANCE:
        raise FormatError(
            f"the matrix is not orthogonal: Q Qᵀ differs from I by up to {error:.2g}. Take the "
            "orthogonal factor of its polar or QR decomposition in float64."
        )
    return Rotation(size=len(dense), label=f"given matrix of {len(dense)}", dense=dense)


def _haar(generator: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    factor, triangle = np.linalg.qr(generator.standard_normal((size, size)))
    signed: npt.NDArray[np.float64] = factor * np.where(np.diagonal(triangle) < 0, -1.0, 1.0)
    return signed


def _eigenvectors(covariance: Array | None, size: int) -> npt.NDArray[np.float64]:
    """Columns by falling eigenvalue, the largest entry of each positive."""
    if covariance is None:
        raise FormatError("a klt rotation is made of a covariance: give one, [n, n].")
    matrix = np.asarray(covariance, np.float64)
    if matrix.shape != (size, size) or not np.isfinite(matrix).all():
        raise FormatError(
            f"the covariance is {list(matrix.shape)} or not finite: it is [{size}, {size}] for "
            f"{size} channels."
        )
    _, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    falling = vectors[:, ::-1]
    largest = np.take_along_axis(falling, np.abs(falling).argmax(axis=0)[None], axis=0)[0]
    return np.ascontiguousarray(falling * np.where(largest < 0, -1.0, 1.0))
