"""The factor of a Hessian that rounding column after column needs, safe for any input.

For one row, let e = w − ŵ be what rounding changes. The damped Hessian has one factorization

    H + λI = U D Uᵀ,   U unit upper triangular, D diagonal, so that   e H eᵀ = Σ_i D_i (e U)_i²,
    (e U)_i = w_i + Σ_{j<i} e_j U_ji − ŵ_i.

When columns are rounded first to last, everything but ŵ_i is known in term i, so rounding
w_i + Σ_{j<i} e_j U_ji to the nearest point makes that term least: LDLQ (Chee et al., QuIP,
arXiv:2307.13304, section 3). GPTQ (Frantar et al., arXiv:2210.17323) takes R, the upper Cholesky
factor of (H + λI)⁻¹ = RᵀR, and after each column adds −(ŵ'_i − w'_i) R_ij / R_ii to the weights w'
of the columns that remain. It is the same rounding: R = D^{-1/2} U⁻¹, hence D_i = 1 / R_ii², the
variance of the error of column i that the columns after it cannot make up for.

`factor_hessian` computes U and D by one elimination of H from its last column to its first. GPTQ's
way inverts H between two factorizations: three times the work, and the condition number enters
twice. NumPy arrays take a blocked native kernel, whose result depends neither on threads nor on the
instruction set; other array libraries take their own Cholesky factorization, of the Hessian with
rows and columns reversed (H = J L (J L)ᵀ).

Elimination in a precision u gives the exact factor of H + λI + Δ with

    |Δ_ij| ≤ (n + 1) u / (1 − (n + 1) u) · sqrt(H'_ii H'_jj),   H' = H + λI

(Demmel 1989; Higham, "Accuracy and Stability of Numerical Algorithms", theorem 10.5; L D Lᵀ has the
same sums and the same bound). Each column is judged by its own size: outlier channels do no harm to
others. So what rounding adds to D_i is at most about n u H'_ii, and its roundings partly cancel, to
some sqrt(n) u H'_ii. Float32 (u = 2⁻²⁴) is therefore enough as long as every D_i ≥ n u H'_ii: with
4096 columns and the usual damping of 1 %, D_i ≥ λ makes that true of every column whose power is
below 41 times the mean, and of all stronger ones that the other columns do not predict to 0.02 %.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.numerics import _native
from onnxq.numerics.threads import default_threads

__all__ = ["Factor", "factor_hessian"]

Array = npt.NDArray[Any]
Attempt = Callable[[Array], tuple[Array, Array] | None]


@dataclasses.dataclass(frozen=True)
class Factor:
    """H + λI = U D Uᵀ; arrays of the library the Hessian came in.

    Attributes:
        upper: U, unit upper triangular ``[columns, columns]``, float64 or float32.
        variances: D, ``[columns]`` float64, all positive.
        damping: λ, in units of the Hessian; more than asked for where less was not enough.
    """

    upper: Array
    variances: Array
    damping: float


def factor_hessian(
    hessian: Array,
    *,
    damping: float = 0.01,
    places: npt.NDArray[np.int64] | None = None,
    exact: bool = True,
    threads: int | None = None,
    instruction_set: str = "",
) -> Factor:
    """Factor H + λI as U D Uᵀ.

    λ starts at ``damping`` times the mean diagonal of the columns that are not dead, and grows
    tenfold (from float64's rounding when it is 0) until the factorization exists with every D_i
    above the rounding error of the factorization, n · 2⁻⁵² · max H_ii. A dead column, one that is
    always 0 (H_ii ≤ 0), is cut loose: it neither gets nor gives feedback, and has D_i = λ, or the
    mean diagonal when λ is 0.

    Args:
        hessian: ``[columns, columns]``, symmetric positive semidefinite up to rounding, any float
            type; singular, rank-one and diagonal ones are fine. Only the mean of it and its
            transpose is looked at.
        damping: at least 0, relative to the mean diagonal.
        places: the order in which columns are taken, as they are when None.
        exact: in float64. Otherwise in float32 where that is enough for rounding (see the module
            docstring) and the native kernel runs; ``upper`` is float32 then.
        threads: of the native kernel; all CPUs of this process when None. The result does not
            depend on it.
        instruction_set: of the native kernel, see `onnxq.numerics.column_rounding`.

    Raises:
        FormatError: not square, NaN or infinity, or a damping below 0.
    """
    xp = array_api_compat.array_namespace(hessian)
    if len(hessian.shape) != 2 or hessian.shape[0] != hessian.shape[1]:
        raise FormatError(
            f"a Hessian of shape {list(hessian.shape)} is not square: it is [columns, columns] of "
            "the weight, the mean of x xᵀ over the calibration data."
        )
    if not (math.isfinite(damping) and damping >= 0):
        raise FormatError(f"damping is {damping}: choose 0 or more; 0.01 is usual.")
    diagonal = xp.astype(xp.linalg.diagonal(hessian), xp.float64)
    index = None
    if places is not None:
        index = xp.asarray(places, device=array_api_compat.device(hessian))
        diagonal = xp.take(diagonal, index)
    alive = diagonal > 0
    if isinstance(hessian, np.ndarray):
        order = np.arange(len(diagonal)) if places is None else places
        kernel = _Kernel(hessian, order, alive, threads or default_threads(), instruction_set)
        if not exact:
            found = _damped(xp, kernel.attempt_single, diagonal, alive, damping, once=True)
            if found is not None:
                return found
        found = _damped(xp, kernel.attempt, diagonal, alive, damping)
    else:
        if index is not None:
            hessian = xp.take(xp.take(hessian, index, axis=0), index, axis=1)
        attempt = _attempt_anywhere(xp, hessian, alive)
        found = _damped(xp, attempt, diagonal, alive, damping)
    if found is None:
        raise _not_finite()
    return found


def _damped(
    xp: Any, attempt: Attempt, diagonal: Array, alive: Array, damping: float, *, once: bool = False
) -> Factor | None:
    """Try ever larger λ; the largest makes any symmetric matrix diagonally dominant.

    Args:
        xp: the array library.
        attempt: U and D with a given diagonal, or None when there are none.
        diagonal: of the Hessian.
        alive: where it is above 0.
        damping: relative to the mean of the diagonal that is.
        once: give up, with None, where the first λ is not enough.
    """
    if not bool(xp.all(xp.isfinite(diagonal))):
        return None
    live = xp.astype(alive, xp.float64)
    count = float(xp.sum(live))
    scale = float(xp.sum(xp.where(alive, diagonal, 0.0))) / max(count, 1.0)
    if count == 0:
        scale, damping = 1.0, 0.0
    added = damping * scale
    smallest = int(diagonal.shape[0]) * 2.0**-52 * float(xp.max(diagonal))
    while True:
        dead = added if added > 0 else scale
        factor = attempt(live * (diagonal + added) + (1 - live) * dead)
        if factor is not None and bool(xp.all(factor[1] > smallest)):
            return Factor(*factor, added)
        if once:
            return None
        added = max(10 * added, smallest)


class _Kernel:
    """The native factorization of one Hessian, in either precision."""

    def __init__(
        self, hessian: Array, places: Array, alive: Array, threads: int, instruction_set: str
    ) -> None:
        kind = np.float32 if hessian.dtype == np.float32 else np.float64
        self._hessian = np.ascontiguousarray(hessian, kind)
        self._places = np.ascontiguousarray(places, np.int64)
        self._alive = np.ascontiguousarray(alive, np.uint8)
        self._how = threads, instruction_set

    def attempt(self, diagonal: Array) -> tuple[Array, Array] | None:
        """U float64 and D, or None where H with this diagonal is not positive definite."""
        state, upper, variances, _ = self._run(diagonal, np.float64)
        if state == 2:
            raise _not_finite()
        return None if state else (upper, variances)

    def attempt_single(self, diagonal: Array) -> tuple[Array, Array] | None:
        """U float32 and D; None also where float32 is not enough."""
        state, upper, variances, least = self._run(diagonal, np.float32)
        enough = state == 0 and least >= len(diagonal) * 2.0**-24
        return (upper, variances) if enough else None

    def _run(self, diagonal: Array, dtype: type) -> tuple[int, Array, Array, float]:
        """What the native call says, and what it filled."""
        size = len(diagonal)
        upper: Array = np.empty((size, size), dtype)
        variances, least = np.empty(size), np.zeros(1)
        # Powers of 2 change no bit, and bring any unit into the range of float32.
        unit = 2.0 ** -math.frexp(float(diagonal.max()))[1]
        state = _native.factor_hessian(
            self._hessian, self._places, diagonal, self._alive, unit, upper, variances, least,
            *self._how,
        )  # fmt: skip
        return state, upper, variances, float(least[0])


def _attempt_anywhere(xp: Any, hessian: Array, alive: Array) -> Attempt:
    """The factorization in float64 with the Cholesky decomposition of an array library."""
    matrix = xp.astype(hessian, xp.float64)
    matrix = (matrix + matrix.T) / 2
    if not bool(xp.all(xp.isfinite(matrix))):
        raise _not_finite()
    live = xp.astype(alive, matrix.dtype)
    matrix = matrix * live[:, None] * live[None, :]

    def attempt(diagonal: Array) -> tuple[Array, Array] | None:
        try:
            lower = xp.linalg.cholesky(xp.flip(_with_diagonal(xp, matrix, diagonal)))
        except RuntimeError as error:  # torch: its LinAlgError, told from others by its words
            if "positive-definite" not in str(error):
                raise
            return None
        root = xp.flip(lower)
        ends = xp.linalg.diagonal(root)
        return root / ends[None, :], ends * ends

    return attempt


def _with_diagonal(xp: Any, matrix: Array, diagonal: Array) -> Array:
    """A copy with another diagonal."""
    changed: Array = xp.asarray(matrix, copy=True)
    xp.reshape(changed, (-1,))[:: matrix.shape[0] + 1] = diagonal
    return changed


def _not_finite() -> FormatError:
    return FormatError(
        "the Hessian holds NaN or infinity: an activation of the calibration run did; "
        "run the model on the same samples and look for the first value that is not finite."
    )
