"""What an error of a weight costs: a quadratic form for every site, whatever measured it.

For a weight W ``[rows, columns]`` stored as Ŵ, with E = W − Ŵ and rows e_i,

    loss(E) = factor · Σ_i r_i · e_i M e_iᵀ  [ / Σ_i r_i · w_i M w_iᵀ  where relative ]

with M the identity, the Hessian H = E[x xᵀ] of what the site reads, or a matrix of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

__all__ = ["SiteCost"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteCost:
    """The quadratic form of one site.

    Attributes:
        form: which matrix M is.
        factor: of the whole.
        rows: r, ``[rows]``; all 1 when None.
        matrix: M for ``own``, ``[groups, columns, columns]``.
        relative: divide by the form of the weight itself.
    """

    form: Literal["identity", "hessian", "own"]
    factor: float = 1.0
    rows: Array | None = None
    matrix: Array | None = None
    relative: bool = False

    def loss(
        self, weight: Array, error: Array, at: Array, hessians: Sequence[Array] | None
    ) -> float:
        """The loss of an error that is known for some of the rows.

        The rest is taken to err as these do, in proportion to what rows cost: Σ over all rows of
        the form of W, over that of the rows known.

        Args:
            weight: W, ``[rows, columns]``.
            error: E of the rows ``at``.
            at: indices of these rows, ascending; all of them for a site of several groups.
            hessians: H of each group, for ``hessian``.
        """
        whole = self._form(weight, np.arange(len(weight)), hessians)
        known = whole if len(at) == len(weight) else self._form(weight[at], at, hessians)
        if known <= 0:
            return 0.0
        share = self._form(error, at, hessians) / known
        return float(self.factor * share * (1.0 if self.relative else whole))

    def _form(self, rows: Array, at: Array, hessians: Sequence[Array] | None) -> float:
        matrices = self._matrices(hessians)
        split = rows.reshape(len(matrices), -1, rows.shape[1])
        squares = np.concatenate(
            [
                np.sum((part if m is None else part @ m) * part, axis=1, dtype=np.float64)
                for part, m in zip(split, matrices, strict=True)
            ]
        )
        return float(squares.sum() if self.rows is None else squares @ self.rows[at])

    def _matrices(self, hessians: Sequence[Array] | None) -> Sequence[Array | None]:
        if self.form == "identity":
            return (None,)
        found = hessians if self.form == "hessian" else self.matrix
        if found is None:
            raise ValueError(f"a cost of the form {self.form!r} was given no matrix")
        return [np.asarray(matrix, np.float32) for matrix in found]
